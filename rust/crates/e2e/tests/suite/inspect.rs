//! `nix2container inspect` and `diff`: what they tell of archives and of images in containerd.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use e2e::{
    containerd::{Containerd, NIX},
    host::{Host, test, unique},
    image::{Image, Layer, NIX_CLOSURE, NIX_LAYER, architecture},
    node::{Node, build, busybox_image, reference},
    process::{run, succeed},
    snapshots::says,
    store::{Store, nar_size},
};
use serde_json::Value;

/// A store path that nobody has.
const NOBODYS: &str = "/nix/store/00000000000000000000000000000000-nobody-has-this";

fn inspect(containerd: &Containerd, what: &str) -> Result<Value> {
    let text = succeed(&mut containerd.nix2container(&["inspect", "--json", what]))?;
    Ok(serde_json::from_str(&text)?)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

fn hello(host: &Host, image: &str, flags: &[&str]) -> Result<std::path::PathBuf> {
    let program = format!("{}/bin/hello", host.fixture("hello")?);
    build(
        host,
        image,
        &[&program],
        &host.fixture("hello-closure-info")?,
        flags,
    )
}

#[test]
fn an_archive_and_the_image_in_containerd_are_told_alike() {
    test(|host| {
        let node = Node::start(host)?;
        let containerd = &node.containerd;
        let image = reference("told");
        for (flags, kind) in [
            (&[][..], "nix-closure"),
            (&["--annotations", "per-path"], "nix-per-path"),
        ] {
            let archive = hello(host, &image, flags)?;
            let of_archive = inspect(containerd, text(&archive)?)?;
            containerd.load(NIX, &archive)?;
            let of_containerd = inspect(containerd, &image)?;
            ensure!(
                of_archive["images"] == of_containerd["images"],
                "{of_archive:#} {of_containerd:#}"
            );
            ensure!(of_containerd["source"] == *image);

            let told = &of_archive["images"][0];
            let digest = containerd.image_digest(&image)?;
            ensure!(told["digest"].as_str() == digest.as_deref(), "{told:#}");
            ensure!(
                told["names"][0] == *image && told["layers"][0]["kind"] == kind,
                "{told:#}"
            );
            ensure!(told["platform"] == format!("linux/{}", architecture()));
            let closure = &told["closure"];
            ensure!(closure["is_complete"] == true && closure["missing"] == serde_json::json!([]));
            let paths = closure["store_paths"].as_array().context("no paths")?;
            let mut total = 0;
            for path in paths {
                let size = nar_size(path["path"].as_str().context("no path")?)?;
                ensure!(
                    path["nar_size"] == size && path["present"] == true,
                    "{path}"
                );
                total += size;
            }
            ensure!(closure["nar_size"] == total && total > 0, "{closure:#}");
            let list = fs::read_to_string(format!(
                "{}/store-paths",
                host.fixture("hello-closure-info")?
            ))?;
            let closure_infos = usize::from(kind == "nix-closure");
            ensure!(
                paths.len() == list.lines().count() + closure_infos,
                "{closure:#}"
            );

            let table = succeed(&mut containerd.nix2container(&["inspect", &image]))?;
            says(&table, &[&image, "/bin/hello", "STORE PATH", "0 missing"])?;
            for path in paths {
                says(&table, &[path["path"].as_str().unwrap_or_default()])?;
            }
            containerd.remove_image(&image)?;
        }
        Ok(())
    });
}

#[test]
fn archives_are_read_however_they_come() {
    test(|host| {
        let node = Node::start(host)?;
        let archive = hello(host, &reference("comes"), &[])?;
        let expected = inspect(&node.containerd, text(&archive)?)?;
        for (tool, pack) in [
            ("gzip", "gzip --stdout"),
            ("zstd", "zstd --stdout"),
            ("cat", "cat"),
        ] {
            if Command::new(tool).arg("--version").output().is_err() {
                continue;
            }
            let mut shell = Command::new("sh");
            let script = format!("{pack} \"$1\" | \"$2\" inspect --json -");
            shell
                .args(["-c", &script, "sh"])
                .arg(&archive)
                .arg(host.nix2container());
            let told: Value = serde_json::from_str(&succeed(&mut shell)?)?;
            ensure!(told["images"] == expected["images"], "{tool}: {told:#}");
        }
        Ok(())
    });
}

#[test]
fn what_is_missing_here_is_told() {
    test(|host| {
        let node = Node::start(host)?;
        let hello = host.fixture("hello")?;
        let layer = Layer::per_path(&[&hello])?;
        let layer = layer.annotation("containerd.io/snapshot/nix-store-path.7", NOBODYS);
        let archive = busybox_image(host, &reference("missing"), [layer])?;
        let told = inspect(&node.containerd, text(&archive)?)?;
        let image = &told["images"][0];
        ensure!(
            image["layers"][0]["kind"] == "ordinary"
                && image["layers"][1]["kind"] == "nix-per-path"
        );
        let closure = &image["closure"];
        ensure!(
            closure["missing"] == serde_json::json!([NOBODYS]),
            "{closure:#}"
        );
        ensure!(closure["nar_size"] == nar_size(&hello)?, "{closure:#}");

        let layer = Layer::default()
            .annotation(NIX_LAYER, "true")
            .annotation(NIX_CLOSURE, NOBODYS);
        let archive = busybox_image(host, &reference("unknown"), [layer])?;
        let told = inspect(&node.containerd, text(&archive)?)?;
        let closure = &told["images"][0]["closure"];
        ensure!(
            closure["is_complete"] == false && closure["missing"][0] == NOBODYS,
            "{closure:#}"
        );
        let table = succeed(&mut node.containerd.nix2container(&["inspect", text(&archive)?]))?;
        says(&table, &[NOBODYS, "missing", "There are more"])
    });
}

#[test]
fn a_path_that_nix_does_not_know_has_no_size_and_the_others_have() {
    test(|host| {
        let hello = host.fixture("hello")?;
        let stray = "/nix/store/11111111111111111111111111111111-not-registered";
        fs::create_dir(stray)?;
        let layer = Layer::per_path(&[&hello, stray])?;
        let archive = busybox_image(host, &reference("stray"), [layer])?;
        let mut inspect = Command::new(host.nix2container());
        let ended = run(inspect.args(["inspect", "--json"]).arg(&archive));
        fs::remove_dir(stray)?;
        let ended = ended?;
        says(&ended.stderr, &["does not know", stray])?;
        let told: Value = serde_json::from_str(&ended.success()?)?;
        let closure = &told["images"][0]["closure"];
        ensure!(closure["nar_size"] == nar_size(&hello)?, "{closure:#}");
        let paths = closure["store_paths"].as_array().context("no paths")?;
        let of_stray = paths.iter().find(|path| path["path"] == stray);
        ensure!(
            of_stray.is_some_and(|path| path["nar_size"].is_null()),
            "{closure:#}"
        );
        Ok(())
    });
}

#[test]
fn without_nix_there_are_no_sizes_and_one_line_says_so() {
    test(|host| {
        let archive = hello(host, &reference("no-nix"), &[])?;
        let mut inspect = Command::new(host.nix2container());
        let ended = run(inspect.arg("inspect").arg(&archive).env("PATH", host.dir()))?;
        let lines: Vec<_> = ended.stderr.lines().collect();
        ensure!(lines.len() == 1, "{}", ended.stderr);
        says(&ended.stderr, &["nix-store", "not known"])?;
        says(&ended.success()?, &["STORE PATH", "unknown", "0 missing"])
    });
}

#[test]
fn what_images_say_does_not_reach_the_terminal_unescaped() {
    test(|host| {
        let node = Node::start(host)?;
        let hostile = "\u{1b}]0;owned\u{7}\u{9b}2J\r\u{202e}";
        let archive = host.dir().join(unique("hostile"));
        let image = reference("hostile");
        Image::new(&image)
            .entrypoint(&[hostile])
            .setting("User", hostile.into())
            .setting("Env", serde_json::json!([hostile]))
            .setting("Labels", serde_json::json!({ hostile: hostile }))
            .setting("Volumes", serde_json::json!({ hostile: {} }))
            .layer(Layer::default().dir("etc")?)
            .write(&archive)?;
        node.containerd.load(NIX, &archive)?;
        let other = busybox_image(host, &reference("other"), [])?;
        for what in [text(&archive)?, &image] {
            for arguments in [
                &["inspect", what][..],
                &["inspect", "--json", what],
                &["diff", text(&other)?, what],
                &["diff", "--json", text(&other)?, what],
            ] {
                let said = succeed(&mut node.containerd.nix2container(arguments))?;
                let is_hostile = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
                ensure!(!said.contains(is_hostile), "{arguments:?}: {said:?}");
                says(&said, &["owned"])?;
            }
        }
        // Escaped, and not lost.
        let told = inspect(&node.containerd, &image)?;
        ensure!(told["images"][0]["config"]["User"] == hostile, "{told:#}");
        Ok(())
    });
}

#[test]
fn each_platform_is_told_that_there_is() {
    test(|host| {
        let node = Node::start(host)?;
        let containerd = &node.containerd;
        let image = reference("platforms");
        let archive = host.dir().join(unique("platforms"));
        let of = |architecture: &str| -> Result<Image> {
            let layer = Layer::default().dir(architecture)?;
            Ok(Image::new(&image).architecture(architecture).layer(layer))
        };
        Image::write_all(vec![of("amd64")?, of("arm64")?], &archive)?;
        let told = inspect(containerd, text(&archive)?)?;
        let platforms = |told: &Value| -> Vec<Value> {
            let images = told["images"].as_array().cloned().unwrap_or_default();
            images
                .iter()
                .map(|image| image["platform"].clone())
                .collect()
        };
        ensure!(
            platforms(&told) == ["linux/amd64", "linux/arm64"],
            "{told:#}"
        );
        ensure!(told["images"][0]["index"].is_string(), "{told:#}");
        succeed(
            containerd
                .nix2container(&["load", "--all-platforms"])
                .arg(&archive),
        )?;
        let of_containerd = inspect(containerd, &image)?;
        ensure!(
            of_containerd["images"] == told["images"],
            "{of_containerd:#}"
        );
        Ok(())
    });
}

#[test]
fn a_file_comes_before_an_image_and_neither_is_an_error_that_says_so() {
    test(|host| {
        let node = Node::start(host)?;
        let containerd = &node.containerd;
        let name = unique("both");
        let image = format!("docker.io/library/{name}:latest");
        containerd.load(NIX, &busybox_image(host, &image, [])?)?;
        let here = |arguments: &[&str]| {
            let mut command = containerd.nix2container(arguments);
            command.current_dir(host.dir());
            command
        };
        // A directory of that name is in nobody's way.
        fs::create_dir(host.dir().join(&name))?;
        let told: Value =
            serde_json::from_str(&succeed(&mut here(&["inspect", "--json", &name]))?)?;
        ensure!(told["source"] == *image, "{told:#}");
        fs::remove_dir(host.dir().join(&name))?;
        fs::copy(
            hello(host, &reference("file"), &[])?,
            host.dir().join(&name),
        )?;
        let told: Value =
            serde_json::from_str(&succeed(&mut here(&["inspect", "--json", &name]))?)?;
        ensure!(told["source"] == *name, "{told:#}");

        let said = run(&mut here(&["inspect", "nobody"]))?.failure()?;
        says(
            &said,
            &["no file nobody", "docker.io/library/nobody:latest", &image],
        )?;
        let said = run(&mut here(&["inspect", "./nobody"]))?.failure()?;
        says(&said, &["no file ./nobody"])?;
        let ended = run(&mut here(&["inspect"]))?;
        ensure!(ended.status.code() == Some(2), "{ended:?}");
        Ok(())
    });
}

#[test]
fn a_difference_is_told_between_an_archive_and_an_image() {
    test(|host| {
        let node = Node::start(host)?;
        let containerd = &node.containerd;
        let store = Store::new(host)?;
        let one = store.build("package-1.0", "echo one > $out", &[])?;
        let two = store.build("package-2.0", "echo twice as much > $out", &[])?;
        let (hello, busybox) = (host.fixture("hello")?, host.fixture("busybox")?);
        let (a, b) = (reference("a"), reference("b"));
        let of = |paths: &[&str]| Layer::per_path(paths);
        let a_archive = busybox_image(host, &a, [of(&[&hello, one.path()])?])?;
        let b_archive = busybox_image(host, &b, [of(&[&busybox, two.path()])?])?;
        containerd.load(NIX, &b_archive)?;

        let difference = |a: &str, b: &str| -> Result<Value> {
            let text = succeed(&mut containerd.nix2container(&["diff", "--json", a, b]))?;
            Ok(serde_json::from_str(&text)?)
        };
        let told = difference(text(&a_archive)?, &b)?;
        let paths = &told["store_paths"];
        ensure!(paths["removed"][0]["path"] == *hello, "{told:#}");
        ensure!(paths["added"][0]["path"] == *busybox, "{told:#}");
        let changed = &paths["changed"][0];
        ensure!(
            changed["a"]["path"] == one.path() && changed["b"]["path"] == two.path(),
            "{told:#}"
        );
        ensure!(changed["name"] == "package", "{told:#}");
        ensure!(
            changed["b"]["nar_size"] == nar_size(two.path())?,
            "{told:#}"
        );
        // The layer of busybox is in both.
        let layers = &told["layers"];
        for (what, count) in [("shared", 1), ("added", 1), ("removed", 1)] {
            ensure!(
                layers[what].as_array().map(Vec::len) == Some(count),
                "{told:#}"
            );
        }
        let table = succeed(&mut containerd.nix2container(&["diff", text(&a_archive)?, &b]))?;
        says(
            &table,
            &["ADDED", "REMOVED", "1.0", "2.0", "shared", &hello, &busybox],
        )?;

        let same = difference(text(&b_archive)?, &b)?;
        ensure!(
            same["a"]["digest"] == same["b"]["digest"] && same["config"] == serde_json::json!([])
        );
        let table = succeed(&mut containerd.nix2container(&["diff", &b, &b]))?;
        says(&table, &["the same image"])
    });
}
