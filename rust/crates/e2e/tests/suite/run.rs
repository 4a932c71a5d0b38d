//! Containers of every kind of image, run by containerd and runc.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    thread::ScopedJoinHandle,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    containerd::{NIX, OVERLAYFS},
    host::{Host, test},
    image::{Image, Layer, NIX_CLOSURE, NIX_LAYER},
    node::{BUSYBOX, Node, build, busybox_image, reference},
    process::{SETTLE, poll},
    store::{Object, Store, fingerprint},
};

const HELLO: &str = "Hello, world!\n";

/// An archive that runs hello out of its closure, made by `nix2container build`.
fn hello(host: &Host, reference: &str, flags: &[&str]) -> Result<PathBuf> {
    let program = format!("{}/bin/hello", host.fixture("hello")?);
    build(
        host,
        reference,
        &[&program],
        &host.fixture("hello-closure-info")?,
        flags,
    )
}

/// The paths that a closure-info lists.
fn store_paths(closure_info: &str) -> Result<Vec<String>> {
    let list = fs::read_to_string(Path::new(closure_info).join("store-paths"))?;
    Ok(list.lines().map(str::to_owned).collect())
}

/// What a container of the image prints.
fn prints(node: &Node, image: &str, command: &[&str]) -> Result<String> {
    node.containerd.run(NIX, image, command)?.success()
}

#[test]
fn hello_in_the_closure_format() {
    test(|host| {
        let node = Node::start(host)?;
        let image = reference("hello");
        node.containerd.load(NIX, &hello(host, &image, &[])?)?;
        ensure!(prints(&node, &image, &[])? == HELLO);
        Ok(())
    });
}

#[test]
fn hello_in_the_per_path_format() {
    test(|host| {
        let node = Node::start(host)?;
        let image = reference("hello");
        let archive = hello(host, &image, &["--annotations", "per-path"])?;
        node.containerd.load(NIX, &archive)?;
        ensure!(prints(&node, &image, &[])? == HELLO);
        Ok(())
    });
}

#[test]
fn hello_unpacked_by_containerd_itself() {
    test(|host| {
        let node = Node::start(host)?;
        for flags in [&[][..], &["--annotations", "per-path"]] {
            let image = reference("hello");
            node.containerd.import(NIX, &hello(host, &image, flags)?)?;
            ensure!(prints(&node, &image, &[])? == HELLO, "{flags:?}");
        }
        Ok(())
    });
}

#[test]
fn hello_in_an_image_of_the_go_project() {
    test(|host| {
        let node = Node::start(host)?;
        let paths = store_paths(&host.fixture("hello-closure-info")?)?;
        let paths: Vec<_> = paths.iter().map(String::as_str).collect();
        let program = format!("{}/bin/hello", host.fixture("hello")?);
        let archive = host.dir().join("archive");
        for load in [false, true] {
            let image = reference("hello");
            Image::new(&image)
                .entrypoint(&[&program])
                .layer(Layer::per_path(&paths)?)
                .write(&archive)?;
            match load {
                true => node.containerd.load(NIX, &archive)?,
                false => node.containerd.import(NIX, &archive)?,
            }
            ensure!(prints(&node, &image, &[])? == HELLO);
        }
        Ok(())
    });
}

#[test]
fn redis_answers() {
    test(|host| {
        let node = Node::start(host)?;
        let image = reference("redis");
        let program = format!("{}/bin/redis-server", host.fixture("redis")?);
        let closure = host.fixture("redis-closure-info")?;
        node.containerd
            .load(NIX, &build(host, &image, &[&program], &closure, &[])?)?;

        // The test runs in the sandbox's own network; a port that was free is free for long enough.
        let port = TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port()
            .to_string();
        let command = [
            &*program,
            "--port",
            &port,
            "--bind",
            "127.0.0.1",
            "--save",
            "",
        ];
        let redis = node
            .containerd
            .run_detached(NIX, &["--net-host"], &image, &command)?;
        let mut connection = poll("redis", SETTLE, || {
            Ok(TcpStream::connect(format!("127.0.0.1:{port}")).ok())
        })?;
        connection.set_read_timeout(Some(SETTLE))?;
        connection.write_all(b"SET key value\r\nGET key\r\nPING\r\n")?;
        let mut answer = [0; 22];
        connection.read_exact(&mut answer)?;
        ensure!(answer[..] == b"+OK\r\n$5\r\nvalue\r\n+PONG\r\n"[..22]);

        // The client of the same closure, inside the container.
        let client = format!("{}/bin/redis-cli", host.fixture("redis")?);
        ensure!(redis.exec(&[&client, "-p", &port, "ping"])? == "PONG\n");
        redis.remove()
    });
}

#[test]
fn an_ordinary_image() {
    test(|host| {
        let node = Node::start(host)?;
        let image = reference("ordinary");
        let layer = Layer::default()
            .dir("etc")?
            .file("etc/greeting", 0o644, b"good day\n")?;
        let archive = busybox_image(host, &image, [layer])?;
        node.containerd.import(NIX, &archive)?;
        ensure!(prints(&node, &image, &[BUSYBOX, "cat", "/etc/greeting"])? == "good day\n");

        node.containerd.load(OVERLAYFS, &archive)?;
        let answer = node
            .containerd
            .run(OVERLAYFS, &image, &[BUSYBOX, "cat", "/etc/greeting"])?;
        ensure!(answer.success()? == "good day\n");
        ensure!(node.daemon.config().kept()?.gc_roots.is_empty());
        Ok(())
    });
}

#[test]
fn an_image_that_mixes_both_kinds_of_layer() {
    test(|host| {
        let node = Node::start(host)?;
        let store = Store::new(host)?;
        let first = store.build("first", "$busybox mkdir $out; echo one > $out/file", &[])?;
        let second = store.build("second", "$busybox mkdir $out; echo two > $out/file", &[])?;
        let info = store.closure_info(&[&second])?;
        let ordinary = |text: &str| {
            Layer::default()
                .dir("etc")?
                .file("etc/greeting", 0o644, text.as_bytes())
        };
        let closure = Layer::per_path(&[second.path()])?;
        let closure = closure
            .annotation(NIX_LAYER, "true")
            .annotation(NIX_CLOSURE, info.path());
        // Ordinary layers below, between and above those of Nix.
        let layers = [
            ordinary("below\n")?,
            Layer::per_path(&[first.path()])?,
            ordinary("between\n")?,
            closure,
            ordinary("above\n")?,
        ];
        let image = reference("mixed");
        let archive = busybox_image(host, &image, layers)?;
        for load in [false, true] {
            match load {
                true => node.containerd.load(NIX, &archive)?,
                false => node.containerd.import(NIX, &archive)?,
            }
            let (one, two) = (format!("{first}/file"), format!("{second}/file"));
            let printed = prints(
                &node,
                &image,
                &[BUSYBOX, "cat", &one, &two, "/etc/greeting"],
            )?;
            ensure!(printed == "one\ntwo\nabove\n", "{printed:?}");
            node.containerd.remove_image(&image)?;
        }
        Ok(())
    });
}

#[test]
fn an_image_built_on_an_ordinary_one_with_links_in_its_root() {
    test(|host| {
        let node = Node::start(host)?;
        let base = busybox_image(host, &reference("base"), [])?;
        let links = host.dir().join("copy-to-root");
        fs::write(&links, format!("[{:?}]", host.fixture("hello")?))?;
        let image = reference("derived");
        let flags = [
            "--from-image",
            base.to_str().context("a path in UTF-8")?,
            "--copy-to-root",
            links.to_str().context("a path in UTF-8")?,
        ];
        let closure = host.fixture("hello-closure-info")?;
        let archive = build(host, &image, &["/bin/hello"], &closure, &flags)?;
        node.containerd.load(NIX, &archive)?;
        ensure!(prints(&node, &image, &[])? == HELLO);
        // /bin has the program of the base beside the link.
        ensure!(prints(&node, &image, &[BUSYBOX, "echo", "here"])? == "here\n");
        Ok(())
    });
}

#[test]
fn store_objects_of_every_kind() {
    test(|host| {
        let node = Node::start(host)?;
        let store = Store::new(host)?;
        let dir = store.build("dir", "$busybox mkdir $out; echo in-dir > $out/file", &[])?;
        let file = store.build("file", "echo in-file > $out", &[])?;
        // A script for the container's own busybox.
        let script = "echo '#!/bin/busybox sh' > $out; echo 'echo from-script' >> $out; \
                      $busybox chmod +x $out";
        let program = store.build("program", script, &[])?;
        let to_dir = store.build("to-dir", &format!("$busybox ln -s {dir} $out"), &[&dir])?;
        let to_file = store.build("to-file", &format!("$busybox ln -s {file} $out"), &[&file])?;
        let outside = store.build("outside", "$busybox ln -s /etc/greeting $out", &[])?;
        let all = [&dir, &file, &program, &to_dir, &to_file, &outside];
        let info = store.closure_info(&all)?;
        let paths = all.map(Object::path);

        let greeting = || {
            Layer::default()
                .dir("etc")?
                .file("etc/greeting", 0o644, b"greeting\n")
        };
        let (inside, through) = (format!("{dir}/file"), format!("{to_dir}/file"));
        let files = [&*inside, file.path(), &*through, to_file.path()];
        let expected = "in-dir\nin-file\nin-dir\nin-file\n";

        // As the Go project builds it, which refuses links that lead nowhere on its own
        // machine; and with places for none of the paths, which the daemon then makes.
        let by_hand = reference("by-hand");
        let archive = busybox_image(host, &by_hand, [greeting()?, Layer::per_path(&paths[..5])?])?;
        node.containerd.import(NIX, &archive)?;
        let bare = reference("bare");
        let layer = Layer::default()
            .dir("x")?
            .annotation(NIX_CLOSURE, info.path());
        let archive = busybox_image(host, &bare, [greeting()?, layer])?;
        node.containerd.import(NIX, &archive)?;
        for image in [&by_hand, &bare] {
            let printed = prints(&node, image, &[&[BUSYBOX, "cat"][..], &files].concat())?;
            ensure!(printed == expected, "{image}: {printed:?}");
            let printed = prints(&node, image, &[program.path()])?;
            ensure!(printed == "from-script\n", "{image}: {printed:?}");
        }
        // The link out of the store leads to the container's own file, not to the host's.
        let printed = prints(&node, &bare, &[BUSYBOX, "cat", outside.path()])?;
        ensure!(printed == "greeting\n", "{printed:?}");

        // As `nix2container build` does it, where a link stays a link.
        let built = reference("built");
        let busybox = format!("{}/bin/busybox", host.fixture("busybox")?);
        let list = host.dir().join("paths");
        let lines = format!("{}\n{}\n", host.fixture("busybox")?, paths.join("\n"));
        fs::write(&list, lines)?;
        let list = list.to_str().context("a path in UTF-8")?;
        let archive = build(host, &built, &[&busybox], list, &[])?;
        node.containerd.load(NIX, &archive)?;
        let printed = prints(&node, &built, &[&[&*busybox, "cat"][..], &files].concat())?;
        ensure!(printed == expected, "{printed:?}");
        for (link, target) in [(&to_file, file.path()), (&outside, "/etc/greeting")] {
            let printed = prints(&node, &built, &[&busybox, "readlink", link.path()])?;
            ensure!(printed.trim_end() == target, "{link}: {printed:?}");
        }
        Ok(())
    });
}

#[test]
fn what_a_container_writes_never_reaches_the_store() {
    test(|host| {
        let node = Node::start(host)?;
        let store = Store::new(host)?;
        let script = "$busybox mkdir -p $out/sub; echo precious > $out/sub/file; \
                      $busybox chmod 666 $out/sub/file";
        let dir = store.build("dir", script, &[])?;
        let file = store.build("file", "echo precious > $out", &[])?;
        let image = reference("writer");
        let paths = [dir.path(), file.path()];
        let archive = busybox_image(host, &image, [Layer::per_path(&paths)?])?;
        node.containerd.import(NIX, &archive)?;

        let before = [
            fingerprint(Path::new(dir.path()))?,
            fingerprint(Path::new(file.path()))?,
        ];
        let objects: BTreeSet<_> = store_objects()?;
        let sub = format!("{dir}/sub/file");
        for (write, may_succeed) in [
            (format!("echo bad > {sub}"), false),
            (format!("echo bad > {dir}/new"), false),
            (format!("rm {sub}"), false),
            (format!("chmod 777 {sub}"), false),
            (format!("touch {file}"), false),
            (format!("echo bad > {file}"), false),
            (format!("rm {file}"), false),
            (format!("rmdir {dir}"), false),
            (format!("mv {file} /nix/store/moved"), false),
            // In the container's own upper directory, where it may do what it wants.
            (
                "echo mine > /nix/store/new && cat /nix/store/new".to_owned(),
                true,
            ),
        ] {
            let ended = node
                .containerd
                .run(NIX, &image, &[BUSYBOX, "sh", "-c", &write])?;
            ensure!(ended.status.success() == may_succeed, "{write}: {ended:?}");
        }
        let after = [
            fingerprint(Path::new(dir.path()))?,
            fingerprint(Path::new(file.path()))?,
        ];
        ensure!(before == after);
        // Other tests build meanwhile; what a container would have made has these names.
        let new: Vec<_> = store_objects()?.difference(&objects).cloned().collect();
        ensure!(
            !new.iter().any(|name| name == "new" || name == "moved"),
            "{new:?}"
        );
        Ok(())
    });
}

fn store_objects() -> Result<BTreeSet<String>> {
    fs::read_dir("/nix/store")?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

#[test]
fn many_containers_of_one_image_at_once() {
    test(|host| {
        let node = Node::start(host)?;
        let store = Store::new(host)?;
        let dir = store.build("dir", "$busybox mkdir $out; echo content > $out/file", &[])?;
        let image = reference("many");
        let archive = busybox_image(host, &image, [Layer::per_path(&[dir.path()])?])?;
        node.containerd.import(NIX, &archive)?;
        let file = format!("{dir}/file");
        let results: Vec<_> = std::thread::scope(|scope| {
            let run = || {
                node.containerd
                    .run(NIX, &image, &[BUSYBOX, "cat", &file])?
                    .success()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(ScopedJoinHandle::join).collect()
        });
        for printed in results {
            let printed = printed.ok().context("a thread panicked")??;
            ensure!(printed == "content\n", "{printed:?}");
        }
        // Nothing of the containers is left.
        let left = node.containerd.snapshots(NIX)?.names(&["kind==active"])?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    });
}

#[test]
fn two_pulls_of_one_image_at_once() {
    test(|host| {
        let node = Node::start(host)?;
        let image = reference("hello");
        let archive = hello(host, &image, &[])?;
        let results: Vec<_> = std::thread::scope(|scope| {
            let load = || node.containerd.load(NIX, &archive);
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(load)).collect();
            threads.into_iter().map(ScopedJoinHandle::join).collect()
        });
        for loaded in results {
            loaded.ok().context("a thread panicked")??;
        }
        ensure!(prints(&node, &image, &[])? == HELLO);
        // What lost the race, and the container, containerd's collector removes.
        node.containerd.collect_garbage()?;
        let rows = node.daemon.snapshots()?.names(&[])?;
        ensure!(rows.len() == 1, "{rows:?}");
        let kept = node.daemon.config().kept()?;
        ensure!(kept.gc_roots.len() == 1, "{kept:?}");
        Ok(())
    });
}
