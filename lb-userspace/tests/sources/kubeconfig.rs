//! Kubeconfig files, good and bad.

use std::{fs, path::PathBuf};

use lb_userspace::source::cluster::{ClusterConfig, connect};
use tempfile::TempDir;

/// A kubeconfig whose only cluster is this one.
pub(crate) fn kubeconfig(cluster: &str) -> String {
    kubeconfig_for(cluster, "{}")
}

fn kubeconfig_for(cluster: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
         contexts: [{{name: here, context: {{cluster: c, user: u}}}}, {{name: lost, context: {{cluster: nowhere}}}}]\n\
         clusters: [{{name: c, cluster: {cluster}}}]\nusers: [{{name: u, user: {user}}}]\n"
    )
}

#[tokio::test]
async fn a_bad_kubeconfig_names_the_file_and_the_field() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("config");
    let good = "{server: 'http://127.0.0.1:1'}";
    let not_pem = dir.path().join("ca.txt");
    fs::write(&not_pem, "no certificate").unwrap();
    let ca_file =
        format!("{{server: 'https://127.0.0.1:1', certificate-authority: '{}'}}", not_pem.display());
    let table = [
        ("kind: [", None, "-: is no kubeconfig, line "),
        ("just text", None, "-: is no kubeconfig"),
        (
            "apiVersion: v1\nkind: Config\n",
            None,
            "current-context: is not set; set it, or choose a context (there are: none)",
        ),
        (&kubeconfig(good), Some("other"), "contexts: there is no context \"other\" (there are: here, lost)"),
        (
            &kubeconfig(good),
            Some("lost"),
            "contexts[lost].context.cluster: there is no cluster \"nowhere\" (there are: c)",
        ),
        (&kubeconfig("{}"), None, "clusters[c].cluster.server: is not set"),
        (&kubeconfig("{server: 'http://a b'}"), None, "clusters[c].cluster.server: is no URL"),
        (
            &kubeconfig("{server: 'https://127.0.0.1:1', certificate-authority: nowhere.crt}"),
            None,
            "clusters[c].cluster.certificate-authority: cannot be loaded",
        ),
        (
            &kubeconfig("{server: 'https://127.0.0.1:1', certificate-authority-data: '*'}"),
            None,
            "clusters[c].cluster.certificate-authority: cannot be loaded",
        ),
        (
            &kubeconfig(&ca_file),
            None,
            "clusters[c].cluster.certificate-authority: holds no certificate; it must be PEM",
        ),
        (
            &kubeconfig(
                "{server: 'https://127.0.0.1:1', certificate-authority-data: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCkFBQUEKLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo=}",
            ),
            None,
            "clusters[].cluster.certificate-authority: is no certificate",
        ),
        (
            &kubeconfig("{server: 'http://127.0.0.1:1', proxy-url: 'http://127.0.0.1:2'}"),
            None,
            "clusters[c].cluster.proxy-url: is not supported; give the address of the API server itself",
        ),
        (
            &kubeconfig_for(
                "{server: 'https://127.0.0.1:1'}",
                "{client-certificate: nowhere.crt, client-key: nowhere.key}",
            ),
            None,
            "users[].user.client-certificate: cannot be loaded",
        ),
        (
            &kubeconfig_for(
                "{server: 'https://127.0.0.1:1'}",
                "{client-certificate-data: 'AAAA', client-key-data: 'AAAA'}",
            ),
            None,
            "users[].user.client-",
        ),
        (
            &kubeconfig_for(
                "{server: 'https://127.0.0.1:1'}",
                "{exec: {apiVersion: client.authentication.k8s.io/v1, command: /nowhere}}",
            ),
            None,
            "users[].user: yields no credentials",
        ),
    ];
    for (text, context, expected) in table {
        fs::write(&file, text).unwrap();
        let message = connect_error(file.clone(), context).await;
        let expected = format!("kubeconfig {}: {expected}", file.display());
        assert!(message.starts_with(&expected), "{message}\nexpected {expected}");
    }
    let nowhere = dir.path().join("nowhere");
    let message = connect_error(nowhere.clone(), None).await;
    assert_eq!(
        message,
        format!("kubeconfig {}: -: cannot be read; check the path and its permissions", nowhere.display())
    );
}

async fn connect_error(file: PathBuf, context: Option<&str>) -> String {
    let config = ClusterConfig {
        kubeconfig: Some(file),
        context: context.map(str::to_owned),
        node_name: "node-a".into(),
        legacy_endpoints: false,
    };
    match connect(&config).await {
        Ok(client) => panic!("a client of {}", client.server()),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn outside_of_a_pod_a_kubeconfig_is_asked_for() {
    let config =
        ClusterConfig { kubeconfig: None, context: None, node_name: "a".into(), legacy_endpoints: false };
    let Err(error) = connect(&config).await else { panic!("this is no pod") };
    assert_eq!(
        error.to_string(),
        "no service account found; pass --kubeconfig FILE, or --manifests DIR to run without a cluster"
    );
}
