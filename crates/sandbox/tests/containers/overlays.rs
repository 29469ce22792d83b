//! Detached overlay mounts, by both sets of system calls.

use std::path::PathBuf;

use bud_sandbox::overlay::{MAX_LOWERS, MountApi, Overlay, OverlayError};
use rustix::fs::{Mode, OFlags};

use crate::Case;
use crate::bed::{Bed, tree};

pub const CASES: &[Case] = &[
    ("views_and_writable_overlays", views_and_writable_overlays),
    ("long_chains", long_chains),
    ("odd_paths", odd_paths),
    ("more_than_the_kernel_stacks", more_than_the_kernel_stacks),
    ("containers_by_the_old_interface", containers_by_the_old_interface),
];

const APIS: [MountApi; 2] = [MountApi::Auto, MountApi::Old];

fn layers(bed: &mut Bed, name: &str, count: usize) -> Vec<PathBuf> {
    let parent = bed.new_directory("layers");
    let make = |number: usize| {
        let directory = parent.join(format!("{number:03}{name}"));
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("who"), number.to_string()).unwrap();
        std::fs::write(directory.join(number.to_string()), "").unwrap();
        directory
    };
    (0..count).map(make).collect()
}

fn read(root: &std::os::fd::OwnedFd, path: &str) -> String {
    let file = rustix::fs::openat(root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    std::io::read_to_string(std::fs::File::from(file)).unwrap()
}

fn writes(root: &std::os::fd::OwnedFd) -> bool {
    rustix::fs::openat(root, "new", OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))
        .is_ok()
}

fn views_and_writable_overlays(bed: &mut Bed) {
    let lowers = layers(bed, "", 2);
    for api in APIS {
        let view = Overlay { lowers: lowers.clone(), ..Overlay::default() }.mount(api).unwrap();
        // The first one is the top one.
        assert_eq!(read(&view, "who"), "0");
        assert!(!writes(&view));
        let one = Overlay { lowers: lowers[1..].to_vec(), ..Overlay::default() }.mount(api).unwrap();
        assert_eq!(read(&one, "who"), "1");
        assert!(!writes(&one));
        for volatile in [false, true] {
            let (upper, work) = (bed.new_directory("upper"), bed.new_directory("work"));
            let root = Overlay { lowers: lowers.clone(), upper: Some(upper.clone()), work: Some(work), volatile }
                .mount(api)
                .unwrap();
            assert!(writes(&root));
            rustix::fs::unlinkat(&root, "1", rustix::fs::AtFlags::empty()).unwrap();
            assert_eq!(tree(&upper), ["1", "new"], "{api:?}");
        }
    }
    assert!(matches!(Overlay::default().mount(MountApi::Auto), Err(OverlayError::Invalid(_))));
    let half = Overlay { lowers: lowers.clone(), upper: Some(lowers[0].clone()), ..Overlay::default() };
    assert!(matches!(half.mount(MountApi::Auto), Err(OverlayError::Invalid(_))));
    let gone = Overlay { lowers: vec![lowers[0].clone(), "/no/such".into()], ..Overlay::default() };
    for api in APIS {
        let error = gone.mount(api).unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
    }
}

fn long_chains(bed: &mut Bed) {
    // The option string would take tens of kilobytes.
    let lowers = layers(bed, &"x".repeat(120), 300);
    for api in APIS {
        let (upper, work) = (bed.new_directory("upper"), bed.new_directory("work"));
        let root = Overlay { lowers: lowers.clone(), upper: Some(upper), work: Some(work), volatile: true }
            .mount(api)
            .unwrap();
        assert_eq!(read(&root, "who"), "0");
        assert_eq!(read(&root, "299"), "");
        assert!(writes(&root), "{api:?}");
    }
    // Nothing is left of the links that made it fit.
    assert!(
        !std::fs::read_dir(std::env::temp_dir()).unwrap().any(|entry| entry
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with(".bud-overlay"))
    );
}

fn odd_paths(bed: &mut Bed) {
    let mut lowers = layers(bed, ":a,b\\c d", 2);
    lowers.extend(layers(bed, &"y".repeat(240), 2));
    for api in APIS {
        let work = bed.new_directory("work,:\\");
        let upper = bed.new_directory("upper:,\\");
        let root = Overlay { lowers: lowers.clone(), upper: Some(upper.clone()), work: Some(work), volatile: false }
            .mount(api)
            .unwrap();
        assert_eq!(read(&root, "who"), "0");
        assert!(writes(&root), "{api:?}");
        assert_eq!(tree(&upper), ["new"]);
    }
}

fn more_than_the_kernel_stacks(bed: &mut Bed) {
    let lowers = vec![bed.new_directory("layer"); MAX_LOWERS + 1];
    for api in APIS {
        let error = Overlay { lowers: lowers.clone(), ..Overlay::default() }.mount(api).unwrap_err();
        assert!(matches!(error, OverlayError::TooManyLayers { layers: 501, limit: 500 }), "{error}");
    }
}

fn containers_by_the_old_interface(bed: &mut Bed) {
    bed.server = None;
    // SAFETY: this process has one thread.
    unsafe { std::env::set_var(bud_sandbox::overlay::MOUNT_API_VARIABLE, "old") };
    bed.server = Some(bud_sandbox::server::ForkServer::start().unwrap());
    let mut lowers = layers(bed, &"x".repeat(100), 60);
    lowers.push(bed.busybox());
    let spec = bed.shell_over(lowers, "cat /who; ls /59; echo x > /new; grep ' / ' /proc/mounts");
    let output = bed.run(&spec).ok();
    assert!(output.starts_with("0/59\noverlay / overlay rw,nodev"), "{output}");
    assert!(!output.contains("lowerdir+"), "{output}");
}
