use super::*;
use crate::error::Code;

fn open(root: &Path) -> Snapshotter {
    Snapshotter::open(root, &Options::default()).unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn create(snapshotter: &Snapshotter, kind: Kind, key: &str, parent: &str) -> Result<Snapshot> {
    let reservation = snapshotter.reserve();
    snapshotter.create(reservation, kind, key, Some(parent), labels(&[("l", "1")]))
}

#[test]
fn the_life_of_a_snapshot() {
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path());
    let a = create(&s, Kind::Active, "a", "").unwrap();
    assert_eq!(a.parents, []);
    s.commit("layer", "a", None, labels(&[("m", "2"), ("none", "")]))
        .unwrap();
    let info = s.stat("layer").unwrap();
    assert_eq!((info.kind, info.parent.as_str()), (Kind::Committed, ""));
    assert_eq!(info.created, info.updated);
    assert_eq!(info.labels, labels(&[("m", "2")]));
    assert_eq!(s.stat("a").unwrap_err().code(), Code::NotFound);
    let b = create(&s, Kind::Active, "b", "layer").unwrap();
    assert_eq!(b.parents, [a.id]);
    let error = s.remove("layer").unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.to_string().contains("remove"));
    assert!(s.usage("layer").unwrap().inodes == 1);
    s.remove("b").unwrap();
    s.remove("layer").unwrap();
    assert!(s.layer_dir(a.id).exists());
    s.cleanup().unwrap();
    assert!(!s.layer_dir(a.id).exists());
}
