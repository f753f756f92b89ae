//! An object of a list or watch, read so that a bad one does not spoil the list or the watch.
//!
//! The client library deserialises a whole list at once and knows no object in an event that it cannot deserialise: one
//! bad object would keep a list from ever ending, and its removal from being seen. Here name and version are read first,
//! and the rest leniently.

use std::borrow::Cow;

use kube::{Resource, api::ObjectMeta};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    model::ObjectName,
    source::decode::{Decoded, decode},
};

/// An object, as far as it could be read.
#[derive(Clone, Debug)]
pub(super) struct Watched<K> {
    /// Name, namespace and version alone.
    metadata: ObjectMeta,
    /// The object.
    pub(super) decoded: Decoded<K>,
}

impl<K> Watched<K> {
    /// The object's name; empty where it has none.
    pub(super) fn name(&self) -> ObjectName {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        ObjectName::new(text(&self.metadata.namespace), text(&self.metadata.name))
    }
}

impl<'de, K: DeserializeOwned + Resource<DynamicType = ()>> Deserialize<'de> for Watched<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        let text = |key| value["metadata"][key].as_str().map(str::to_owned);
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        if let Some(Value::Object(metadata)) = value.get_mut("metadata") {
            // Often the largest part of an object, and of no use here.
            metadata.remove("managedFields");
            metadata
                .remove("annotations")
                .map(|annotations| metadata.insert("annotations".to_owned(), annotations));
        }
        let name = ObjectName::new(
            metadata.namespace.clone().unwrap_or_default(),
            metadata.name.clone().unwrap_or_default(),
        );
        let decoded = decode(value, &format!("{} {name}", K::kind(&())));
        Ok(Self { metadata, decoded })
    }
}

impl<K: Resource<DynamicType = ()>> Resource for Watched<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
