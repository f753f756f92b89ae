//! A kubeconfig file → the client's configuration, with errors that name the file and the field.

use std::path::Path;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use tower::BoxError;

use super::ClusterError;

/// Reads the configuration of a context; absent: of the current one.
pub(super) async fn read(file: &Path, context: Option<&str>) -> Result<kube::Config, ClusterError> {
    let kubeconfig = Kubeconfig::read_from(file).map_err(|error| unreadable(file, error))?;
    let cluster = chosen_cluster(file, &kubeconfig, context)?;
    let named = kubeconfig.clusters.iter().find(|named| named.name == cluster);
    let proxy = named.and_then(|named| named.cluster.as_ref()?.proxy_url.as_ref());
    if proxy.is_some_and(|proxy| !proxy.is_empty()) {
        let what = "is not supported; give the address of the API server itself";
        return Err(problem(file, cluster_field(&cluster, "proxy-url"), what, None));
    }
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(|error| unusable(file, &cluster, error))?;
    if config.root_cert.as_ref().is_some_and(Vec::is_empty) {
        let field = cluster_field(&cluster, "certificate-authority");
        return Err(problem(file, field, "holds no certificate; it must be PEM", None));
    }
    Ok(config)
}

/// The name of the cluster that the context leads to. Says what there is to choose from.
fn chosen_cluster(file: &Path, config: &Kubeconfig, context: Option<&str>) -> Result<String, ClusterError> {
    let listed = |names: Vec<&str>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let contexts = listed(config.contexts.iter().map(|context| context.name.as_str()).collect());
    let Some(chosen) = context.or(config.current_context.as_deref()).filter(|name| !name.is_empty()) else {
        let what = format!("is not set; set it, or choose a context (there are: {contexts})");
        return Err(problem(file, "current-context", what, None));
    };
    let found = config.contexts.iter().find(|context| context.name == chosen);
    let Some(context) = found.and_then(|context| context.context.as_ref()) else {
        let what = format!("there is no context \"{chosen}\" (there are: {contexts})");
        return Err(problem(file, "contexts", what, None));
    };
    let clusters = listed(config.clusters.iter().map(|cluster| cluster.name.as_str()).collect());
    if config.clusters.iter().any(|named| named.name == context.cluster && named.cluster.is_some()) {
        Ok(context.cluster.clone())
    } else {
        let what = format!("there is no cluster \"{}\" (there are: {clusters})", context.cluster);
        Err(problem(file, format!("contexts[{chosen}].context.cluster"), what, None))
    }
}

fn cluster_field(cluster: &str, field: &str) -> String {
    format!("clusters[{cluster}].cluster.{field}")
}

fn unreadable(file: &Path, error: KubeconfigError) -> ClusterError {
    match error {
        KubeconfigError::ReadConfig(source, _) => {
            problem(file, "-", "cannot be read; check the path and its permissions", Some(source.into()))
        }
        KubeconfigError::Parse(source) => {
            let line =
                source.location().map_or_else(String::new, |location| format!(", line {}", location.line()));
            problem(
                file,
                "-",
                format!("is no kubeconfig{line}"),
                Some(source.without_snippet().to_string().into()),
            )
        }
        other => problem(file, "-", "is no kubeconfig", Some(other.into())),
    }
}

fn unusable(file: &Path, cluster: &str, error: KubeconfigError) -> ClusterError {
    let (field, what) = match &error {
        KubeconfigError::MissingClusterUrl => ("server", "is not set"),
        KubeconfigError::ParseClusterUrl(_) => ("server", "is no URL"),
        KubeconfigError::LoadCertificateAuthority(_) => ("certificate-authority", "cannot be loaded"),
        KubeconfigError::ParseCertificates(_) => ("certificate-authority", "is not PEM"),
        _ => return problem(file, "-", "cannot be used", Some(error.into())),
    };
    problem(file, cluster_field(cluster, field), what, Some(error.into()))
}

/// Why no client can be made of a file that could be read.
pub(super) fn unusable_credentials(file: &Path, error: kube::Error) -> ClusterError {
    use kube::client::RustlsTlsError as Tls;
    let (field, what) = match &error {
        kube::Error::RustlsTls(Tls::AddRootCertificate(_)) => {
            ("clusters[].cluster.certificate-authority", "is no certificate")
        }
        kube::Error::RustlsTls(Tls::MissingCertificate)
        | kube::Error::InferKubeconfig(KubeconfigError::LoadClientCertificate(_)) => {
            ("users[].user.client-certificate", "cannot be loaded")
        }
        kube::Error::RustlsTls(_) => {
            ("users[].user.client-key", "is no key, or does not fit the certificate")
        }
        kube::Error::InferKubeconfig(KubeconfigError::LoadClientKey(_)) => {
            ("users[].user.client-key", "cannot be loaded")
        }
        kube::Error::Auth(_) => ("users[].user", "yields no credentials"),
        _ => ("-", "cannot be used"),
    };
    problem(file, field, what, Some(error.into()))
}

/// What is wrong with a field of a file; `-` stands for the whole file.
fn problem(
    file: &Path,
    field: impl Into<String>,
    what: impl Into<String>,
    source: Option<BoxError>,
) -> ClusterError {
    ClusterError::Kubeconfig { file: file.to_owned(), field: field.into(), what: what.into(), source }
}
