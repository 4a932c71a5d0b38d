use super::{
    check::{Facts, check},
    model::{Config, Merging},
    read::read,
};
use crate::doctor::finding::{Finding, Level};

/// Everything as it should be, for containerd 1.7 and 2.x.
const GOOD_V2: &str = r#"
version = 2
[proxy_plugins.nix]
  type = "snapshot"
  address = "/run/n.sock"
  capabilities = ["remap-ids"]
  [proxy_plugins.nix.exports]
    root = "/var/lib/n"
    enable_remote_snapshot_annotations = "true"
[plugins."io.containerd.transfer.v1.local"]
  unpack_config = [ { platform = "linux/amd64", snapshotter = "overlayfs" }, { platform = "linux/amd64", snapshotter = "nix" } ]
[plugins."io.containerd.grpc.v1.cri"]
  ignore_image_defined_volumes = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "nix"
  disable_snapshot_annotations = false
"#;

/// The same in version 3.
fn good_v3() -> String {
    GOOD_V2
        .replace("version = 2", "version = 3")
        .replace(
            "io.containerd.grpc.v1.cri\".containerd]",
            "io.containerd.cri.v1.images\"]",
        )
        .replace("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime")
}

fn facts(containerd: Option<(u32, u32)>) -> Facts {
    Facts {
        address: "/run/n.sock".into(),
        root: "/var/lib/n".into(),
        remap_ids: Some(true),
        containerd,
    }
}

fn found(text: &str, facts: &Facts) -> Vec<Finding> {
    check(&Config::extract(&toml::from_str(text).unwrap()), facts)
}

fn worst(findings: &[Finding]) -> Option<&Finding> {
    findings.iter().max_by_key(|finding| finding.level)
}

#[test]
fn good_configurations_have_nothing_wrong() {
    let v3 = good_v3();
    let with_runtime = format!(
        "{v3}\n[plugins.\"io.containerd.cri.v1.images\".runtime_platforms.kata]\n\
         snapshotter = \"overlayfs\"\n\
         [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.kata]\n\
         snapshotter = \"overlayfs\""
    );
    for (text, containerd) in [
        (GOOD_V2, Some((1, 7))),
        (GOOD_V2, Some((2, 2))),
        (GOOD_V2, None),
        (&v3, Some((2, 0))),
        (&v3, None),
        (&with_runtime, Some((2, 1))),
    ] {
        let findings = found(text, &facts(containerd));
        let worst = worst(&findings).unwrap();
        assert_eq!(worst.level, Level::Ok, "{containerd:?}: {worst:?}");
    }
}

#[test]
fn one_change_to_a_good_configuration_is_one_finding() {
    use Level::{Error, Note, Warning};
    let v2 = GOOD_V2;
    let v3 = &good_v3();
    let old = Some((1, 7));
    let new = Some((2, 1));
    let runtime_v2 = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]\nsnapshotter = \"overlayfs\"";
    let runtime_v3 = "[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.kata]\nsnapshotter = \"overlayfs\"";
    let cri_v2 = "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"nix\"";
    for (base, from, to, containerd, level, words) in [
        (
            v2,
            "version = 2",
            "",
            old,
            Warning,
            &["version 1", "version = 2"][..],
        ),
        (
            v3,
            "",
            "",
            old,
            Error,
            &["cannot read version 3", "version = 2"],
        ),
        (
            v3,
            "",
            cri_v2,
            new,
            Warning,
            &["nobody reads", "io.containerd.cri.v1.images"],
        ),
        (
            v2,
            "\"snapshot\"",
            "\"content\"",
            old,
            Error,
            &["\"content\"", "type = \"snapshot\""],
        ),
        (
            v2,
            "address = \"/run",
            "address = \"unix:///run",
            old,
            Error,
            &["unix://", "address = \"/run/n.sock\""],
        ),
        (
            v2,
            "/run/n.sock",
            "/run/other.sock",
            old,
            Error,
            &["/run/other.sock", "address = \"/run/n.sock\""],
        ),
        (
            v2,
            "",
            "[proxy_plugins.second]\ntype = \"snapshot\"\naddress = \"/run/n.sock\"",
            old,
            Error,
            &["nix, second", "keep one"],
        ),
        (
            v2,
            "[\"remap-ids\"]",
            "[\"remap-ids\", \"rebase\"]",
            old,
            Error,
            &["rebase", "remove"],
        ),
        (
            v2,
            "[\"remap-ids\"]",
            "[]",
            old,
            Warning,
            &["lacks", "capabilities = [\"remap-ids\"]"],
        ),
        (
            v2,
            "root = \"/var/lib/n\"",
            "",
            old,
            Warning,
            &["export", "root = \"/var/lib/n\""],
        ),
        (
            v2,
            "enable_remote_snapshot_annotations = \"true\"",
            "",
            new,
            Warning,
            &["enable_remote_snapshot_annotations = \"true\""],
        ),
        (
            v2,
            ", { platform = \"linux/amd64\", snapshotter = \"nix\" }",
            "",
            old,
            Warning,
            &["no entry for nix", "unpack_config = [ {"],
        ),
        (
            v2,
            "{ platform = \"linux/amd64\", snapshotter = \"overlayfs\" },",
            "",
            old,
            Error,
            &["no entry for overlayfs", "replaces"],
        ),
        (
            v2,
            "snapshotter = \"overlayfs\" }",
            "snapshotter = \"overlayfs\" }, { snapshotter = \"stargz\" }",
            old,
            Error,
            &["\"stargz\"", "does not load"],
        ),
        (
            v2,
            "  snapshotter = \"nix\"\n",
            "",
            old,
            Warning,
            &[
                "pods use the snapshotter overlayfs",
                "snapshotter = \"nix\"",
            ],
        ),
        (
            v3,
            "  snapshotter = \"nix\"\n",
            "",
            new,
            Warning,
            &["pods use", "io.containerd.cri.v1.images"],
        ),
        (
            v2,
            "version = 2",
            "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]",
            old,
            Note,
            &["disabled"],
        ),
        (
            v2,
            "disable_snapshot_annotations = false",
            "",
            old,
            Warning,
            &["disable_snapshot_annotations = false"],
        ),
        (
            v2,
            "disable_snapshot_annotations = false",
            "disable_snapshot_annotations = false\ndiscard_unpacked_layers = true",
            old,
            Warning,
            &["discard_unpacked_layers = false"],
        ),
        (
            v2,
            "ignore_image_defined_volumes = true",
            "",
            old,
            Warning,
            &["VOLUME", "ignore_image_defined_volumes = true"],
        ),
        (
            v3,
            "ignore_image_defined_volumes = true",
            "",
            new,
            Warning,
            &["io.containerd.cri.v1.runtime"],
        ),
        (
            v2,
            "",
            runtime_v2,
            new,
            Error,
            &["version 2 when it pulls", "runtime_platforms.kata"],
        ),
        (
            v3,
            "",
            runtime_v3,
            new,
            Error,
            &["unpacked for nix", "made with overlayfs"],
        ),
    ] {
        let text = match from {
            "" => format!("{base}\n{to}"),
            _ => base.replace(from, to),
        };
        assert!(from.is_empty() || text != *base, "{from} is not there");
        let findings = found(&text, &facts(containerd));
        let wrong: Vec<_> = findings
            .iter()
            .filter(|finding| finding.level != Level::Ok)
            .collect();
        assert_eq!(wrong.len(), 1, "{from:?} → {to:?}: {wrong:#?}");
        assert_eq!(wrong[0].level, level, "{wrong:?}");
        let said = format!(
            "{} {}",
            wrong[0].message,
            wrong[0].remedy.as_deref().unwrap_or("")
        );
        for word in words {
            assert!(said.contains(word), "{word} is not in {said}");
        }
    }
}

#[test]
fn what_a_runtime_has_of_its_own_is_right_for_one_containerd_only() {
    let kata = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]\nsnapshotter = \"overlayfs\"";
    let text = format!("{GOOD_V2}\n{kata}");
    assert_eq!(
        worst(&found(&text, &facts(Some((1, 7))))).unwrap().level,
        Level::Ok
    );
}

#[test]
fn a_missing_entry_is_an_error_where_pods_are_pulled_by_the_transfer_service() {
    let text = GOOD_V2
        .replace(
            ", { platform = \"linux/amd64\", snapshotter = \"nix\" }",
            "",
        )
        .replace("disable_snapshot_annotations = false", "");
    for (containerd, level) in [
        (Some((1, 7)), Level::Warning),
        (Some((2, 0)), Level::Warning),
        (Some((2, 1)), Level::Error),
        (None, Level::Error),
    ] {
        let findings = found(&text, &facts(containerd));
        assert_eq!(worst(&findings).unwrap().level, level, "{containerd:?}");
    }
}

#[test]
fn ids_are_mapped_only_where_they_can_be() {
    for (remap_ids, level) in [
        (Some(true), Level::Ok),
        (Some(false), Level::Error),
        (None, Level::Ok),
    ] {
        let facts = Facts {
            remap_ids,
            ..facts(None)
        };
        let findings = found(GOOD_V2, &facts);
        assert_eq!(worst(&findings).unwrap().level, level, "{remap_ids:?}");
    }
}

#[test]
fn imports_are_put_together_as_containerd_does() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("config.toml");
    let cri = "[plugins.\"io.containerd.grpc.v1.cri\".containerd]";
    std::fs::write(
        &main,
        format!("version = 2\nimports = [\"d/*.toml\", \"config.toml\"]\n{cri}\nsnapshotter = \"a\"\ndiscard_unpacked_layers = true"),
    )
    .unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    let proxy = "[proxy_plugins.nix]\ntype = \"snapshot\"";
    std::fs::write(
        dir.path().join("d/1.toml"),
        format!("version = 2\n{proxy}\naddress = \"/one\""),
    )
    .unwrap();
    std::fs::write(
        dir.path().join("d/2.toml"),
        format!("version = 2\n{proxy}\naddress = \"/two\"\n{cri}\nsnapshotter = \"b\""),
    )
    .unwrap();
    std::fs::write(dir.path().join("d/ignored.conf"), "no TOML").unwrap();

    for (merging, discard) in [(Merging::Settings, Some(true)), (Merging::Sections, None)] {
        let (config, findings) = read(&main, merging);
        assert_eq!(findings, []);
        let config = config.unwrap();
        assert_eq!(config.proxies["nix"].address, "/two");
        let cri = config.cri.unwrap();
        assert_eq!(cri.snapshotter.as_deref(), Some("b"));
        assert_eq!(cri.discard_unpacked_layers, discard, "{merging:?}");
    }
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("config.toml");
    let (config, findings) = read(&main, Merging::Settings);
    assert!(config.is_none());
    assert_eq!(findings[0].level, Level::Error);
    assert!(findings[0].message.contains("config.toml does not exist"));

    std::fs::write(
        &main,
        "version = 2\nimports = [\"/nowhere.toml\", \"bad.toml\"]",
    )
    .unwrap();
    std::fs::write(dir.path().join("bad.toml"), "version = 2\nroot = \n").unwrap();
    let (config, findings) = read(&main, Merging::Settings);
    assert!(config.is_some());
    assert!(
        findings[0].message.contains("/nowhere.toml"),
        "{findings:?}"
    );
    assert!(findings[1].message.contains("line 2"), "{findings:?}");
}
