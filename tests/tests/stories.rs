//! The stories of `lb-userspace/tests/stories`, on the kernel's maps: what they mean there is what they mean in memory.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use lb_tests::{bpffs::Bpffs, cgroup::Cgroup};
use lb_userspace::{
    kernel::{Kernel, KernelConfig},
    story::Story,
};

#[test]
fn every_story_happens_on_the_kernels_maps_as_told() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lb-userspace/tests/stories");
    let stories = Story::load_all(&folder)?;
    ensure!(!stories.is_empty(), "no stories in {}", folder.display());
    for (path, story) in stories {
        let (bpffs, cgroup) = (Bpffs::new()?, Cgroup::new("story")?);
        let config = KernelConfig {
            bpffs: bpffs.pin_path(),
            cgroup: cgroup.path().to_owned(),
            capacity: story.capacity(),
            ..KernelConfig::default()
        };
        let kernel = Kernel::prepare(&config)?;
        story.verify(&mut kernel.store()?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
