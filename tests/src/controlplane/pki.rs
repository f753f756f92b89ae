//! The cluster's keys and certificates: one authority, the API server, an administrator, the service accounts' key.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// A folder of PEM files.
pub(super) struct Authority {
    dir: PathBuf,
}

impl Authority {
    /// Makes all keys and certificates in `dir`; the API server's is valid for loopback and for `addresses`.
    pub(super) fn create(dir: &Path, addresses: &[IpAddr]) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("folder {}", dir.display()))?;
        let authority = Self { dir: dir.to_owned() };

        let mut params = named("sockeye-test-ca", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        authority.write("ca.crt", &params.self_signed(&key)?.pem())?;
        let issuer = Issuer::new(params, key);

        let mut server = named("kube-apiserver", &[]);
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server.subject_alt_names = addresses
            .iter()
            .chain([&IpAddr::V4(Ipv4Addr::LOCALHOST)])
            .map(|address| SanType::IpAddress(*address))
            .collect();
        authority.issue(&issuer, "apiserver", &server)?;

        let mut admin = named("admin", &["system:masters"]);
        admin.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        authority.issue(&issuer, "admin", &admin)?;

        let accounts = KeyPair::generate()?;
        authority.write("sa.key", &accounts.serialize_pem())?;
        authority.write("sa.pub", &accounts.public_key_pem())?;
        Ok(authority)
    }

    /// The `user` of a kubeconfig with the administrator's rights.
    pub(super) fn admin_user(&self) -> serde_json::Value {
        serde_json::json!({ "client-certificate": self.path("admin.crt"), "client-key": self.path("admin.key") })
    }

    /// Where a file is.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    fn issue(&self, issuer: &Issuer<'_, KeyPair>, name: &str, params: &CertificateParams) -> Result<()> {
        let key = KeyPair::generate()?;
        self.write(&format!("{name}.crt"), &params.signed_by(&key, issuer)?.pem())?;
        self.write(&format!("{name}.key"), &key.serialize_pem())
    }

    fn write(&self, file: &str, pem: &str) -> Result<()> {
        let path = self.path(file);
        fs::write(&path, pem).with_context(|| format!("file {}", path.display()))
    }
}

/// A certificate's subject: the user, and the groups (organisations) that it belongs to.
fn named(user: &str, groups: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, user);
    for group in groups {
        params.distinguished_name.push(DnType::OrganizationName, *group);
    }
    params
}
