use super::*;
use crate::id_mapping::{GID_MAPPING_LABEL, UID_MAPPING_LABEL};

const FEATURES: Features = Features {
    kernel: String::new(),
    user_namespace: false,
    openat2: true,
    overlay: true,
    d_type: true,
    index: true,
    userxattr: true,
    id_mapped_layers: true,
    fuse_overlayfs: Ok(()),
};

fn mapping(text: &str) -> IdMapping {
    let labels =
        [UID_MAPPING_LABEL, GID_MAPPING_LABEL].map(|label| (label.to_owned(), text.to_owned()));
    IdMapping::of(&labels.into()).unwrap().unwrap()
}

fn policy(overlay: Overlay) -> MountPolicy {
    let options = Options {
        overlay,
        mount_options: vec!["volatile".to_owned()],
        ..Options::default()
    };
    MountPolicy::new(&options, &FEATURES).unwrap()
}

/// What a snapshot is, the mount that it has, and the owner that its directory gets.
type Case = (
    Overlay,
    Kind,
    &'static [u64],
    Ids,
    &'static str,
    Option<Owner>,
);

#[test]
fn mounts_and_owners() {
    use Kind::{Active, View};
    use Overlay::{Fuse, Kernel};
    let seen = || Ids::AsSeen;
    let mapped = || Ids::Mapped(mapping("0:7:9,9:1:2"));
    let shifted = || Ids::Shifted(mapping("0:7:9,9:1:2"));
    let parent = Some((0, 5));
    let root = Some((7, 7));
    let cases: &[Case] = &[
        (Kernel, Active, &[], seen(), "bind /r/s/9/fs rw,rbind", None),
        (Kernel, View, &[], seen(), "bind /r/s/9/fs ro,rbind", None),
        (
            Kernel,
            View,
            &[3],
            seen(),
            "bind /r/s/3/fs ro,rbind",
            parent,
        ),
        (
            Kernel,
            Active,
            &[3],
            seen(),
            "overlay overlay workdir=/r/s/9/work,upperdir=/r/s/9/fs,\
             lowerdir=/r/s/3/fs,volatile,index=off",
            parent,
        ),
        (
            Kernel,
            Active,
            &[7, 3, 1],
            seen(),
            "overlay overlay workdir=/r/s/9/work,upperdir=/r/s/9/fs,\
             lowerdir=/r/s/7/fs:/r/s/3/fs:/r/s/1/fs,volatile,index=off",
            parent,
        ),
        (
            Kernel,
            View,
            &[7, 3],
            seen(),
            "overlay overlay lowerdir=/r/s/7/fs:/r/s/3/fs,volatile,index=off",
            parent,
        ),
        (
            Kernel,
            Active,
            &[],
            mapped(),
            "bind /r/s/9/fs rw,rbind",
            root,
        ),
        (Kernel, View, &[], mapped(), "bind /r/s/9/fs ro,rbind", root),
        (
            Kernel,
            View,
            &[3],
            mapped(),
            "overlay overlay uidmap=0:7:9,9:1:2,gidmap=0:7:9,9:1:2,\
             lowerdir=/r/s/9/fs:/r/s/3/fs,volatile,index=off",
            parent,
        ),
        (
            Kernel,
            View,
            &[7, 3],
            mapped(),
            "overlay overlay uidmap=0:7:9,9:1:2,gidmap=0:7:9,9:1:2,\
             lowerdir=/r/s/7/fs:/r/s/3/fs,volatile,index=off",
            parent,
        ),
        (
            Kernel,
            Active,
            &[3],
            mapped(),
            "overlay overlay uidmap=0:7:9,9:1:2,gidmap=0:7:9,9:1:2,\
             workdir=/r/s/9/work,upperdir=/r/s/9/fs,lowerdir=/r/s/3/fs,volatile,index=off",
            root,
        ),
        (
            Kernel,
            Active,
            &[],
            shifted(),
            "bind /r/s/9/fs rw,rbind",
            root,
        ),
        (
            Kernel,
            View,
            &[],
            shifted(),
            "bind /r/s/9/fs ro,rbind",
            root,
        ),
        (
            Kernel,
            View,
            &[3],
            shifted(),
            "bind /r/s/3/fs ro,rbind",
            parent,
        ),
        (
            Kernel,
            Active,
            &[3],
            shifted(),
            "overlay overlay workdir=/r/s/9/work,upperdir=/r/s/9/fs,\
             lowerdir=/r/s/3/fs,volatile,index=off",
            root,
        ),
        (Fuse, Active, &[], seen(), "bind /r/s/9/fs rw,rbind", None),
        (Fuse, View, &[3], seen(), "bind /r/s/3/fs ro,rbind", parent),
        (
            Fuse,
            Active,
            &[7, 3],
            seen(),
            "fuse3.fuse-overlayfs overlay workdir=/r/s/9/work,upperdir=/r/s/9/fs,\
             lowerdir=/r/s/7/fs:/r/s/3/fs,volatile",
            parent,
        ),
        (Fuse, Active, &[], mapped(), "bind /r/s/9/fs rw,rbind", root),
        (
            Fuse,
            Active,
            &[3],
            mapped(),
            "fuse3.fuse-overlayfs overlay workdir=/r/s/9/work,upperdir=/r/s/9/fs,\
             lowerdir=/r/s/3/fs,uidmapping=0:7:9:9:1:2,gidmapping=0:7:9:9:1:2,volatile",
            parent,
        ),
        (
            Fuse,
            View,
            &[3],
            mapped(),
            "fuse3.fuse-overlayfs overlay lowerdir=/r/s/9/fs:/r/s/3/fs,\
             uidmapping=0:7:9:9:1:2,gidmapping=0:7:9:9:1:2,volatile",
            parent,
        ),
        (
            Fuse,
            Active,
            &[3],
            shifted(),
            "fuse3.fuse-overlayfs overlay workdir=/r/s/9/work,upperdir=/r/s/9/fs,\
             lowerdir=/r/s/3/fs,volatile",
            root,
        ),
    ];
    for (overlay, kind, parents, ids, want, owner) in cases {
        let snapshot = Snapshot {
            id: Id(9),
            kind: *kind,
            parents: parents.iter().copied().map(Id).collect(),
            ids: ids.clone(),
        };
        let policy = policy(*overlay);
        let got = policy.mounts(Path::new("/r/s"), &snapshot);
        let [
            Mount {
                fstype,
                source,
                target,
                options,
            },
        ] = got.as_slice()
        else {
            panic!("{got:?}");
        };
        assert_eq!(target, "");
        assert_eq!(format!("{fstype} {source} {}", options.join(",")), *want);
        let of_parent = parent.filter(|_| !parents.is_empty());
        assert_eq!(policy.owner(&snapshot, of_parent), *owner, "{snapshot:?}");
    }
}

#[test]
fn options_are_added_where_they_are_needed_unless_configured() {
    let options = |user_namespace, configured: &[&str], overlay| {
        let options = Options {
            overlay,
            mount_options: configured.iter().map(|&option| option.to_owned()).collect(),
            ..Options::default()
        };
        let features = Features {
            user_namespace,
            ..FEATURES
        };
        let policy = MountPolicy::new(&options, &features).unwrap();
        policy.overlay_options().join(",")
    };
    use Overlay::{Fuse, Kernel};
    assert_eq!(options(false, &[], Kernel), "index=off");
    assert_eq!(options(true, &[], Kernel), "userxattr,index=off");
    assert_eq!(
        options(true, &["volatile"], Kernel),
        "volatile,userxattr,index=off"
    );
    assert_eq!(
        options(true, &["index=on", "userxattr"], Kernel),
        "index=on,userxattr"
    );
    assert_eq!(options(true, &["noacl"], Fuse), "noacl");
    let bare = Features {
        index: false,
        userxattr: false,
        user_namespace: true,
        ..FEATURES
    };
    let policy = MountPolicy::new(&Options::default(), &bare).unwrap();
    assert!(policy.overlay_options().is_empty());
}

#[test]
fn ids_are_mapped_once_or_not_at_all() {
    let ids = |remap_ids, id_mapped_layers, overlay, text, parent| {
        let options = Options {
            overlay,
            remap_ids,
            ..Options::default()
        };
        let features = Features {
            id_mapped_layers,
            ..FEATURES
        };
        let policy = MountPolicy::new(&options, &features).map_err(|error| error.to_string())?;
        Ok::<_, String>(matches!(policy.ids(mapping(text), parent), Ids::Mapped(_)))
    };
    use Overlay::{Fuse, Kernel};
    use RemapIds::{Always, Auto, Never};
    let text = "0:7:9";
    let (plain, shifted) = (Some((0, 0)), Some((7, 7)));
    for (remap_ids, able, overlay, text, parent, mapped) in [
        (Auto, true, Kernel, text, plain, true),
        (Auto, true, Kernel, text, None, true),
        (Auto, true, Kernel, text, shifted, false),
        (Auto, true, Kernel, text, Some((7, 0)), true),
        (Auto, true, Kernel, "0:0:9", plain, true),
        (Auto, false, Kernel, text, plain, false),
        (Auto, false, Fuse, text, plain, true),
        (Always, true, Kernel, text, plain, true),
        (Always, true, Kernel, text, shifted, false),
        (Always, false, Fuse, text, plain, true),
        (Never, true, Kernel, text, plain, false),
        (Never, true, Fuse, text, plain, false),
    ] {
        let got = ids(remap_ids, able, overlay, text, parent);
        assert_eq!(
            got,
            Ok(mapped),
            "{remap_ids:?} {able} {overlay:?} {text} {parent:?}"
        );
    }
    let refused = ids(Always, false, Kernel, text, plain).unwrap_err();
    assert!(
        refused.contains("remap_ids") && refused.contains("5.19"),
        "{refused}"
    );
}
