//! The program as it is called: `nix2container build`, and `load` as far as it gets
//! without containerd.

#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it in test functions only, not in their helpers"
)]

mod fixture;
mod options;

use std::{
    fs::{self, File},
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use nix_store::StoreDir;

use fixture::{DATA, Fixture, HELLO, INFO, read, stderr};

#[test]
fn an_image_is_built_in_each_format() {
    let fixture = Fixture::new();
    let info = format!("store/{INFO}");
    for (closure, format, named) in [
        (info.as_str(), None, vec![INFO]),
        (&info, Some("per-path"), vec![HELLO, DATA]),
        ("list", None, vec![HELLO, DATA]),
    ] {
        let closure = fixture.path(closure).display().to_string();
        let mut args = vec![
            "--closure",
            &closure,
            "--config",
            "config.json",
            "--ref",
            "hello",
            "out.tar",
        ];
        if let Some(format) = format {
            args.extend(["--annotations", format]);
        }
        fixture.built(&args);
        let image = read(&fixture.path("out.tar"));
        assert_eq!(image.name, "docker.io/library/hello:latest");
        assert_eq!(image.closure, named);
        assert_eq!(image.places, named);
        assert_eq!(image.entrypoint, ["/bin/hello"]);
    }
}

#[test]
fn a_variable_that_is_empty_is_as_none() {
    let fixture = Fixture::new();
    let closure = fixture.path("list").display().to_string();
    let store = fixture.path("store").display().to_string();
    let build = ["build", "--store-dir", &store, "--closure", &closure];
    let mut command = fixture.command(&build);
    let output = command
        .args(["--ref", "hello", "out.tar"])
        .env("CONTAINERD_ADDRESS", "")
        .env("CONTAINERD_NAMESPACE", "")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn flags_are_taken_as_go_takes_them() {
    let fixture = Fixture::new();
    let told = |flag| fixture.command(&[flag]).output().unwrap();
    let [version, again] = ["-V", "-v"].map(told);
    assert!(version.status.success() && again.status.success());
    assert_eq!(version.stdout, again.stdout);
    assert!(version.stdout.starts_with(b"nix2container "));

    // The last of two counts.
    fixture.built(&[
        "--closure",
        "list",
        "--config",
        "config.json",
        "--ref",
        "one",
        "--ref",
        "two",
        "out.tar",
    ]);
    let image = read(&fixture.path("out.tar"));
    assert_eq!(image.name, "docker.io/library/two:latest");
}

#[test]
fn equal_input_gives_equal_bytes_wherever_it_is_built() {
    let fixture = Fixture::new();
    let args = [
        "--closure",
        "list",
        "--copy-to-root",
        "root.json",
        "--ref",
        "hello",
    ];
    fixture.built(&[&args[..], &["one.tar"]].concat());

    fs::create_dir(fixture.path("tmp")).unwrap();
    let mut shell = Command::new("sh");
    shell
        .current_dir(fixture.dir.path())
        .env("LC_ALL", "tr_TR.UTF-8")
        .env("TZ", "Pacific/Auckland")
        .env("TMPDIR", fixture.path("tmp"))
        .args([
            "-c",
            "umask 077; exec \"$@\"",
            "sh",
            env!("CARGO_BIN_EXE_nix2container"),
            "build",
            "--store-dir",
        ])
        .arg(fixture.path("store"))
        .args(args)
        .arg("two.tar");
    assert!(shell.status().unwrap().success());
    assert!(
        fs::read(fixture.path("one.tar")).unwrap() == fs::read(fixture.path("two.tar")).unwrap()
    );
    let mode = fs::metadata(fixture.path("two.tar"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600, "the umask counts");
}

#[test]
fn an_image_is_built_upon_another_however_it_is_compressed() {
    let fixture = Fixture::new();
    fixture.built(&[
        "--closure",
        "list",
        "--config",
        "config.json",
        "--ref",
        "base",
        "base.tar",
    ]);
    let base = fs::read(fixture.path("base.tar")).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(
        File::create(fixture.path("base.tar.gz")).unwrap(),
        flate2::Compression::fast(),
    );
    std::io::copy(&mut &*base, &mut gzip).unwrap();
    gzip.finish().unwrap();
    fs::write(
        fixture.path("base.tar.zst"),
        zstd::encode_all(&*base, 0).unwrap(),
    )
    .unwrap();

    let info = fixture.path("store").join(INFO).display().to_string();
    let mut built = Vec::new();
    for base in ["base.tar", "base.tar.gz", "base.tar.zst"] {
        fixture.built(&[
            "--from-image",
            base,
            "--closure",
            &info,
            "--ref",
            "upper",
            "out.tar",
        ]);
        let image = read(&fixture.path("out.tar"));
        assert_eq!(image.name, "docker.io/library/upper:latest");
        assert_eq!(image.closure, [HELLO, DATA, INFO]);
        assert_eq!(image.entrypoint, ["/bin/hello"]);
        built.push(fs::read(fixture.path("out.tar")).unwrap());
    }
    assert!(built.iter().all(|bytes| *bytes == built[0]));
}

#[test]
fn without_a_name_the_archive_is_the_name() {
    // The usual random name has upper-case letters, which no reference can have.
    let dir = tempfile::Builder::new()
        .prefix(&format!("nix2container-{}-x", std::process::id()))
        .rand_bytes(0)
        .tempdir_in("/tmp")
        .unwrap();
    let fixture = Fixture::new();
    let out = dir.path().join("x.tar");
    let out = out.to_str().unwrap();
    fixture.built(&["--closure", "list", "--config", "config.json", out]);
    assert_eq!(read(Path::new(out)).name, format!("nix:0{out}:latest"));
}

#[test]
fn what_cannot_be_built_is_said_and_leaves_nothing() {
    let fixture = Fixture::new();
    fs::write(fixture.path("bad.json"), r#"{"Entrypiont": []}"#).unwrap();
    fs::write(
        fixture.path("missing"),
        format!("{}/{HELLO}-gone\n", fixture.path("store").display()),
    )
    .unwrap();
    fs::write(
        fixture.path("file.json"),
        format!("[\"{}/{DATA}\"]", fixture.path("store").display()),
    )
    .unwrap();
    fs::write(fixture.path("text.tar"), "no archive").unwrap();
    fixture.built(&["--closure", "list", "--ref", "base", "base.tar"]);
    let base = fs::read(fixture.path("base.tar")).unwrap();
    fs::write(fixture.path("cut.tar"), &base[..base.len() - 2000]).unwrap();
    symlink("nowhere", fixture.path("dangling")).unwrap();
    let before = fixture.names();
    for (args, reason) in [
        (&["out"][..], "nothing to build"),
        (
            &["--closure", "list", "--config", "bad.json", "out"],
            "Entrypiont",
        ),
        (
            &["--closure", "list", "--annotations", "closure", "out"],
            "is not a closure-info",
        ),
        (&["--closure", "missing", "out"], "nix-store --realise"),
        (
            &["--closure", "dangling", "out"],
            "cannot read the closure dangling",
        ),
        (
            &["--copy-to-root", "file.json", "out"],
            "is not a directory",
        ),
        (&["--copy-to-root", "list", "out"], "JSON list"),
        (
            &["--from-image", "nowhere.tar", "out"],
            "cannot read nowhere.tar",
        ),
        (
            &["--from-image", "text.tar", "out"],
            "text.tar is not a tar archive",
        ),
        (&["--from-image", "cut.tar", "out"], "cut.tar"),
        (
            &["--closure", "list", "nowhere/out"],
            "cannot build nowhere/out",
        ),
        (&["--closure", "list", "store"], "cannot build store"),
    ] {
        let args = [&["--ref", "x"], args].concat();
        let output = fixture.build(&args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(
            stderr(&output).contains(reason),
            "{args:?} gave {}",
            stderr(&output)
        );
        assert!(output.stdout.is_empty());
        assert_eq!(fixture.names(), before, "{args:?}");
    }
    let output = fixture.build(&["--closure", "list", "Upper+Case.tar"]);
    assert!(
        stderr(&output).contains("pass --ref"),
        "{}",
        stderr(&output)
    );
    let output = fixture.build(&["--no-such-flag", "out"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn an_archive_is_checked_before_containerd_is_needed() {
    let fixture = Fixture::new();
    fs::write(fixture.path("text.tar"), "no archive").unwrap();
    let output = fixture.command(&["load", "text.tar"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("text.tar is not a tar archive"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn without_containerd_the_address_and_the_way_out_are_named() {
    let fixture = Fixture::new();
    fixture.built(&["--closure", "list", "--ref", "hello", "out.tar"]);
    // A socket that nobody listens at any more.
    drop(std::os::unix::net::UnixListener::bind(fixture.path("dead.sock")).unwrap());
    for (address, reason) in [
        ("no.sock", "there is no such socket"),
        ("dead.sock", "nobody listens there"),
    ] {
        for prefix in ["", "unix://"] {
            let address = format!("{prefix}{}", fixture.path(address).display());
            let output = fixture
                .command(&["load", "-a", &address, "out.tar"])
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(1));
            let message = stderr(&output);
            for word in [address.trim_start_matches("unix://"), reason, "--address"] {
                assert!(message.contains(word), "{message}");
            }
        }
    }
    let output = fixture
        .command(&["load", "-n", "no\nname", "out.tar"])
        .output()
        .unwrap();
    assert!(
        stderr(&output).contains("cannot be a namespace"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_store_directory_is_not_taken_for_another() {
    let fixture = Fixture::new();
    let output = fixture
        .command(&["build", "--closure", "list", "--ref", "x", "out"])
        .output()
        .unwrap();
    let message = stderr(&output);
    assert!(
        message.contains(&StoreDir::default().to_string()),
        "{message}"
    );
}
