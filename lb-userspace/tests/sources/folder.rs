//! The folder source, on real folders that really change.

use std::{
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use lb_userspace::{
    model::{Change, Kind, Object},
    source::{
        allocate::Pools,
        channel,
        folder::{FolderError, FolderSource, read_once},
    },
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::mirror::Mirror;

const NODE: &str = "node-a";

struct Running {
    dir: TempDir,
    mirror: Mirror,
    source: JoinHandle<Result<(), FolderError>>,
}

impl Running {
    /// A source on a folder with these files, when it has said what is in it.
    async fn start(files: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        Self::on(dir.path().to_owned(), dir).await
    }

    async fn on(path: PathBuf, dir: TempDir) -> Self {
        let (sender, receiver) = channel();
        let source = tokio::spawn(FolderSource::new(path, NODE).unwrap().run(sender));
        let mut mirror = Mirror::new(receiver);
        mirror.until("the folder is read", |mirror| mirror.connected == Some(true)).await;
        Self { dir, mirror, source }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
    )
}

fn slice(name: &str, service: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         addressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{{addresses: [192.0.2.1]}}]\n"
    )
}

#[tokio::test]
async fn everything_is_said_at_the_start_one_reset_for_each_kind() {
    let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: node-a}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: node-b}\n";
    let running = Running::start(&[
        ("b.yml", &slice("web-1", "web")),
        ("a.yaml", &(service("web", "10.96.0.1") + node)),
        ("c.json", r#"{"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "db"}}"#),
        ("d.yaml", "kind: [\n"),
        ("notes.txt", "kind: ["),
        (".hidden.yaml", "kind: ["),
    ])
    .await;
    let mirror = &running.mirror;
    let resets: Vec<_> = mirror.log[..Kind::ALL.len()]
        .iter()
        .map(|change| match change {
            Change::Reset(kind, objects) => (*kind, objects.len()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(resets, Kind::ALL.map(|kind| (kind, 1)));
    assert!(mirror.has(Kind::Node, "node-a"));
    assert_eq!(mirror.problems.keys().collect::<Vec<_>>(), ["d.yaml"]);
    assert!(mirror.problem("d.yaml").unwrap().starts_with("d.yaml: document 1, line "));
}

#[tokio::test]
async fn only_differences_follow() {
    let mut running =
        Running::start(&[("a.yaml", &(service("web", "10.96.0.1") + &slice("web-1", "web")))]).await;
    let said = running.mirror.log.len();
    running.write("a.yaml", &(service("web", "10.96.0.2") + &slice("web-1", "web")));
    running
        .mirror
        .until("the address changed", |mirror| mirror.ip("default/web").unwrap() == "10.96.0.2")
        .await;
    running.write("b.yaml", &service("api", "10.96.0.3"));
    running.mirror.until("the file came", |mirror| mirror.has(Kind::Service, "default/api")).await;
    fs::remove_file(running.path("b.yaml")).unwrap();
    running.mirror.until("the file went", |mirror| !mirror.has(Kind::Service, "default/api")).await;
    let changes: Vec<_> = running.mirror.log[said..]
        .iter()
        .map(|change| match change {
            Change::Apply(object) => format!("apply {}", object.name()),
            Change::Delete(kind, name) => format!("delete {kind} {name}"),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(changes, ["apply default/web", "apply default/api", "delete Service default/api"]);
}

#[tokio::test]
async fn a_file_may_be_renamed_over_linked_and_moved_away() {
    let mut running = Running::start(&[("a.yaml", &service("web", "10.96.0.1"))]).await;
    running.write("a.yaml.new", &service("web", "10.96.0.2"));
    fs::rename(running.path("a.yaml.new"), running.path("a.yaml")).unwrap();
    running.mirror.until("renamed over", |mirror| mirror.ip("default/web").unwrap() == "10.96.0.2").await;
    fs::hard_link(running.path("a.yaml"), running.path("a.copy")).unwrap();
    fs::remove_file(running.path("a.yaml")).unwrap();
    running.mirror.until("removed", |mirror| !mirror.has(Kind::Service, "default/web")).await;
    symlink("a.copy", running.path("z.yaml")).unwrap();
    running.mirror.until("linked", |mirror| mirror.has(Kind::Service, "default/web")).await;
    fs::rename(running.path("z.yaml"), running.path("z.off")).unwrap();
    running.mirror.until("moved away", |mirror| !mirror.has(Kind::Service, "default/web")).await;
}

/// A mounted `ConfigMap`: files are links through `..data`, which is switched as a whole.
#[tokio::test]
async fn a_config_map_is_switched_as_a_whole() {
    let dir = TempDir::new().unwrap();
    let version = |name: &str, ip: &str| {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("a.yaml"), service("web", ip)).unwrap();
        fs::write(dir.path().join(name).join("b.yaml"), service("api", &format!("{ip}0"))).unwrap();
    };
    version("..1", "10.96.0.1");
    symlink("..1", dir.path().join("..data")).unwrap();
    for file in ["a.yaml", "b.yaml"] {
        symlink(Path::new("..data").join(file), dir.path().join(file)).unwrap();
    }
    let mut running = Running::on(dir.path().to_owned(), dir).await;
    assert_eq!(running.mirror.ip("default/web").unwrap(), "10.96.0.1");

    let version = |name: &str, ip: &str| {
        fs::create_dir(running.path(name)).unwrap();
        fs::write(running.path(name).join("a.yaml"), service("web", ip)).unwrap();
        fs::write(running.path(name).join("b.yaml"), service("api", &format!("{ip}0"))).unwrap();
    };
    version("..2", "10.96.0.2");
    symlink("..2", running.path("..data_tmp")).unwrap();
    fs::rename(running.path("..data_tmp"), running.path("..data")).unwrap();
    fs::remove_dir_all(running.path("..1")).unwrap();
    running
        .mirror
        .until("both files changed", |mirror| {
            mirror.ip("default/web").unwrap() == "10.96.0.2"
                && mirror.ip("default/api").unwrap() == "10.96.0.20"
        })
        .await;
    assert_eq!(running.mirror.deletions(), 0);
}

#[tokio::test]
async fn a_file_that_is_being_written_is_waited_for() {
    let text = service("web", "10.96.0.1") + &service("api", "10.96.0.2");
    let mut running = Running::start(&[("a.yaml", &text)]).await;
    let path = running.path("a.yaml");
    let writing = tokio::task::spawn_blocking(move || {
        let mut file = fs::File::create(path).unwrap();
        for part in [service("web", "10.96.0.1"), service("api", "10.96.0.2"), service("new", "10.96.0.3")] {
            file.write_all(part.as_bytes()).unwrap();
            // Not a wait for anything: this is how long a slow writer takes.
            std::thread::sleep(Duration::from_millis(150));
        }
    });
    running.mirror.until("the file is complete", |mirror| mirror.has(Kind::Service, "default/new")).await;
    writing.await.unwrap();
    assert_eq!(running.mirror.deletions(), 0, "{:#?}", running.mirror.log);
}

#[tokio::test]
async fn what_a_file_gave_stays_until_it_can_be_read_again_or_goes() {
    let (web, api) = (service("web", "10.96.0.1"), service("api", "10.96.0.2"));
    let mut running =
        Running::start(&[("a.yaml", &(web.clone() + &api)), ("b.yaml", &slice("web-1", "web"))]).await;

    running.write(
        "a.yaml",
        &format!("{}---\nkind: Service\nmetadata: {{name: [}}\n", service("web", "10.96.0.9")),
    );
    running.mirror.until("a problem", |mirror| mirror.problem("a.yaml").is_some()).await;
    let problem = running.mirror.problem("a.yaml").unwrap();
    assert!(problem.starts_with("a.yaml: document 2, line 8: "), "{problem}");
    assert!(problem.ends_with("; what this file gave before and does not name now stays"), "{problem}");
    assert_eq!(running.mirror.ip("default/web").unwrap(), "10.96.0.9");
    assert_eq!(running.mirror.ip("default/api").unwrap(), "10.96.0.2");

    fs::write(running.path("a.yaml"), b"kind: \xff\xfe").unwrap();
    running
        .mirror
        .until("no text", |mirror| mirror.problem("a.yaml").is_some_and(|problem| problem.contains("UTF-8")))
        .await;
    assert_eq!(running.mirror.deletions(), 0);

    running.write("a.yaml", &web);
    running.mirror.until("no problem", |mirror| mirror.problem("a.yaml").is_none()).await;
    assert!(!running.mirror.has(Kind::Service, "default/api"));

    running.write("a.yaml", "kind: [\n");
    running.mirror.until("a problem again", |mirror| mirror.problem("a.yaml").is_some()).await;
    assert!(running.mirror.has(Kind::Service, "default/web"));
    fs::remove_file(running.path("a.yaml")).unwrap();
    running.mirror.until("it went", |mirror| !mirror.has(Kind::Service, "default/web")).await;
    running.mirror.until("nobody misses it", |mirror| mirror.problems.is_empty()).await;
    assert!(running.mirror.has(Kind::EndpointSlice, "default/web-1"));
}

#[tokio::test]
async fn of_two_files_the_first_one_wins_and_the_other_steps_in() {
    let mut running =
        Running::start(&[("b.yaml", &service("web", "10.96.0.2")), ("a.yaml", &service("web", "10.96.0.1"))])
            .await;
    assert_eq!(running.mirror.ip("default/web").unwrap(), "10.96.0.1");
    assert_eq!(
        running.mirror.problem("Service default/web").unwrap(),
        "Service default/web: given in a.yaml (document 1) and again in b.yaml (document 1); the first one counts"
    );
    fs::remove_file(running.path("a.yaml")).unwrap();
    running.mirror.until("the other file's", |mirror| mirror.ip("default/web").unwrap() == "10.96.0.2").await;
    running.mirror.until("no problem", |mirror| mirror.problems.is_empty()).await;
    assert_eq!(running.mirror.deletions(), 0);
}

#[tokio::test]
async fn problems_of_an_object_last_as_long_as_they_do() {
    let bad = service("web", "10.96.0.1").replace("port: 80", "port: 0");
    let mut running = Running::start(&[("a.yaml", &bad)]).await;
    assert_eq!(
        running.mirror.problem("Service default/web").unwrap(),
        "Service default/web: spec.ports[0].port: 0 is not a port (1-65535); this port is skipped"
    );
    running.write("a.yaml", &service("web", "10.96.0.1"));
    running.mirror.until("it is well", |mirror| mirror.problems.is_empty()).await;
}

#[tokio::test]
async fn everything_stays_while_the_folder_is_gone() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("manifests");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.yaml"), service("web", "10.96.0.1")).unwrap();
    let mut running = Running::on(dir.clone(), parent).await;

    fs::remove_dir_all(&dir).unwrap();
    running.mirror.until("it is gone", |mirror| mirror.connected == Some(false)).await;
    let problem = running.mirror.problem(&dir.display().to_string()).unwrap();
    assert!(problem.contains("cannot be read (No such file or directory"), "{problem}");
    assert!(running.mirror.has(Kind::Service, "default/web"));

    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("b.yaml"), service("api", "10.96.0.2")).unwrap();
    running.mirror.until("it is back", |mirror| mirror.connected == Some(true)).await;
    running
        .mirror
        .until("only the new file", |mirror| {
            !mirror.has(Kind::Service, "default/web") && mirror.has(Kind::Service, "default/api")
        })
        .await;
    assert!(running.mirror.problems.is_empty());

    fs::write(dir.join("c.yaml"), service("new", "10.96.0.3")).unwrap();
    running
        .mirror
        .until("the new folder is watched", |mirror| mirror.has(Kind::Service, "default/new"))
        .await;
}

#[tokio::test]
async fn a_folder_that_is_replaced_is_followed() {
    let parent = TempDir::new().unwrap();
    let [first, second, link] = ["1", "2", "current"].map(|name| parent.path().join(name));
    for (dir, ip) in [(&first, "10.96.0.1"), (&second, "10.96.0.2")] {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("a.yaml"), service("web", ip)).unwrap();
    }
    symlink(&first, &link).unwrap();
    let mut running = Running::on(link.clone(), parent).await;
    fs::remove_file(&link).unwrap();
    symlink(&second, &link).unwrap();
    running
        .mirror
        .until("the other folder's", |mirror| mirror.ip("default/web").unwrap() == "10.96.0.2")
        .await;
    fs::write(second.join("a.yaml"), service("web", "10.96.0.3")).unwrap();
    running.mirror.until("its changes too", |mirror| mirror.ip("default/web").unwrap() == "10.96.0.3").await;
}

#[tokio::test]
async fn the_source_ends_with_its_receiver() {
    let Running { source, mirror, dir } = Running::start(&[]).await;
    drop(mirror);
    let ended = tokio::time::timeout(Duration::from_secs(20), source).await;
    assert!(ended.expect("it goes on").unwrap().is_ok());
    drop(dir);
}

#[test]
fn a_folder_that_cannot_be_read_is_an_error_at_the_start() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, "").unwrap();
    for path in [dir.path().join("nowhere"), file] {
        let error = FolderSource::new(path.clone(), NODE).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot read manifest folder {}", path.display()));
        assert!(std::error::Error::source(&error).is_some());
        assert!(read_once(&path, NODE).is_err());
    }
}

#[test]
fn names_that_lead_to_no_file_are_left_alone() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("sub.yaml")).unwrap();
    fs::write(dir.path().join("sub.yaml").join("a.yaml"), service("web", "10.96.0.1")).unwrap();
    symlink("nowhere", dir.path().join("dangling.yaml")).unwrap();
    let (objects, problems) = read_once(dir.path(), NODE).unwrap();
    // The pools alone.
    assert_eq!(objects.iter().map(Object::kind).collect::<Vec<_>>(), [Kind::ServiceCidr]);
    assert_eq!(problems, []);
}

#[tokio::test]
async fn addresses_come_from_the_given_pools() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.yaml"), service("web", "''")).unwrap();
    let (sender, receiver) = channel();
    let source = FolderSource::new(dir.path().to_owned(), NODE).unwrap();
    tokio::spawn(source.with_pools(Pools::of(&["172.30.0.0/24".parse().unwrap()])).run(sender));
    let mut mirror = Mirror::new(receiver);
    mirror.until_listed().await;
    assert!(mirror.ip("default/web").unwrap().starts_with("172.30.0."));
    let pools = mirror.objects.get(&(Kind::ServiceCidr, "--service-cidr".to_owned()));
    let Some(Object::ServiceCidr(pools)) = pools else { panic!("{pools:?}") };
    assert_eq!(pools.networks, ["172.30.0.0/24".parse().unwrap()]);
    let (objects, _) = read_once(dir.path(), NODE).unwrap();
    let [Object::Service(service), Object::ServiceCidr(pools)] = &objects[..] else { panic!("{objects:?}") };
    assert!(service.cluster_ips[0].to_string().starts_with("10.96."));
    assert_eq!(pools.networks.len(), 2);
}

#[test]
fn the_examples_have_no_problems() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let (objects, problems) = read_once(&examples, NODE).unwrap();
    assert!(objects.iter().any(|object| object.kind() == Kind::Service));
    assert_eq!(problems, []);
}
