//! The pipeline with a store in memory that checks the rules of writing, fails now and then, and outlives its writer.

use std::io;

use lb_userspace::{
    model::Change,
    pipeline::{NodePortAddresses, Pipeline, PipelineSettings},
    store::{
        Capacity, Store, StoreError, Tables, Write, checked::CheckedStore, dump::dump, fake::FakeStore,
        faulty::FaultyStore,
    },
};

/// The node that the agent runs on.
pub(crate) const NODE: &str = "node-1";

/// Passes writes on until its writer dies.
pub(crate) struct Mortal {
    inner: FaultyStore<CheckedStore<FakeStore>>,
    life: Option<usize>,
}

/// A pipeline and what it writes to.
pub(crate) struct Agent {
    pub(crate) pipeline: Pipeline,
    pub(crate) store: Mortal,
}

impl Store for Mortal {
    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }

    fn apply(&mut self, write: &Write) -> Result<(), StoreError> {
        if self.life == Some(0) {
            let source = io::Error::other("the writer is dead");
            return Err(StoreError::Kernel { map: "any", operation: "write", source });
        }
        self.life = self.life.map(|left| left - 1);
        self.inner.apply(write)
    }

    fn read(&self) -> Result<Tables, StoreError> {
        self.inner.read()
    }
}

impl Agent {
    pub(crate) fn new(capacity: Capacity, failing_percent: u8, seed: u64) -> Self {
        let checked = CheckedStore::new(FakeStore::new(capacity)).unwrap();
        let inner = FaultyStore::new(checked, failing_percent, seed);
        Self { pipeline: pipeline(capacity), store: Mortal { inner, life: None } }
    }

    /// Ends, after so many more writes, and another one takes over.
    pub(crate) fn die(&mut self, writes: usize, objects: impl IntoIterator<Item = Change>) {
        self.store.life = Some(writes);
        self.pipeline.sync(&mut self.store);
        self.store.life = None;
        self.pipeline = pipeline(self.store.capacity());
        self.pipeline.adopt(self.store.read().unwrap());
        self.tell(objects);
    }

    pub(crate) fn tell(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.pipeline.apply(change);
        }
    }

    /// Syncs until nothing is left to do, and asks for the rules to be kept. Whether everything fits.
    pub(crate) fn converge(&mut self) -> bool {
        for _ in 0..1_000 {
            let report = self.pipeline.sync(&mut self.store);
            assert_eq!(self.store.inner.inner().violations(), &[] as &[String]);
            if report.dirty == 0 {
                assert_eq!(self.pipeline.sync(&mut self.store).failed, 0, "nothing is left to write");
                return report.blocked == 0;
            }
        }
        panic!("does not converge: {:?}", self.pipeline.problems());
    }

    pub(crate) fn dump(&self) -> String {
        dump(&self.store.read().unwrap(), &self.pipeline.record_names())
    }
}

fn pipeline(capacity: Capacity) -> Pipeline {
    let settings = PipelineSettings {
        node_name: NODE.into(),
        node_port_addresses: NodePortAddresses::default(),
        external_ips: true,
        algorithm: lb_userspace::pipeline::DefaultAlgorithm::default(),
    };
    Pipeline::new(settings, capacity)
}
