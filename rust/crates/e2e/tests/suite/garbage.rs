//! What holds a closure, and for how long: containerd's images and containers, and nothing else.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use e2e::{
    containerd::{Container, NIX},
    daemon::Kept,
    host::{Host, test},
    image::{Layer, NIX_CLOSURE},
    node::{BUSYBOX, Node, busybox_image, reference},
    store::{Object, Store, collect_garbage, roots_of},
};

/// A loaded image of which only the daemon's GC roots hold the store objects.
struct Loaded {
    node: Node,
    image: String,
    /// Of the daemon without any image.
    before: Kept,
    objects: Vec<Object>,
}

impl Loaded {
    /// An image of two objects, the second of which is held through the first or, in the
    /// closure format, through the closure-info.
    fn new(host: &Host, closure_format: bool) -> Result<Self> {
        let node = Node::start(host)?;
        let before = node.daemon.config().kept()?;
        let store = Store::new(host)?;
        let inner = store.build("inner", "echo content > $out", &[])?;
        let script = format!("$busybox mkdir $out; echo {inner} > $out/reference");
        let outer = store.build("outer", &script, &[&inner])?;
        let mut objects = vec![outer, inner];
        let layer = if closure_format {
            let info = store.closure_info(&[&objects[0]])?;
            let layer = Layer::default()
                .dir("x")?
                .annotation(NIX_CLOSURE, info.path());
            objects.push(info);
            layer
        } else {
            Layer::per_path(&[objects[0].path(), objects[1].path()])?
        };
        let image = reference("garbage");
        node.containerd
            .import(NIX, &busybox_image(host, &image, [layer])?)?;
        for object in &objects {
            object.release()?;
        }
        Ok(Self {
            node,
            image,
            before,
            objects,
        })
    }

    fn collect(&self) -> Result<()> {
        self.node.containerd.collect_garbage()?;
        collect_garbage()
    }

    fn all_exist(&self) -> bool {
        self.objects.iter().all(Object::exists)
    }

    fn run(&self) -> Result<Container<'_>> {
        self.node
            .containerd
            .run_detached(NIX, &[], &self.image, &[BUSYBOX, "sleep", "1000"])
    }
}

#[test]
fn an_image_holds_its_closure_until_it_is_removed() {
    test(|host| {
        for closure_format in [false, true] {
            let loaded = Loaded::new(host, closure_format)?;
            loaded.collect()?;
            ensure!(
                loaded.all_exist(),
                "the image does not hold its store objects"
            );
            let root = loaded.node.daemon.config().root().join("gcroots");
            for object in &loaded.objects {
                let roots = roots_of(object.path())?;
                ensure!(
                    roots
                        .iter()
                        .any(|line| line.contains(&root.display().to_string()))
                );
            }

            loaded.node.containerd.remove_image(&loaded.image)?;
            loaded.node.daemon.keeps_only(&loaded.before)?;
            // Releasing them was the collector's to do, not ours.
            ensure!(loaded.all_exist());
            collect_garbage()?;
            for object in &loaded.objects {
                ensure!(!object.exists(), "{object} is left");
            }
        }
        Ok(())
    });
}

#[test]
fn a_container_holds_its_closure_when_the_image_is_gone() {
    test(|host| {
        for closure_format in [false, true] {
            let loaded = Loaded::new(host, closure_format)?;
            let container = loaded.run()?;
            loaded.node.containerd.remove_image(&loaded.image)?;
            loaded.collect()?;
            ensure!(
                loaded.all_exist(),
                "the container does not hold its store objects"
            );
            let inner = loaded.objects[1].path();
            ensure!(container.exec(&[BUSYBOX, "cat", inner])? == "content\n");

            container.remove()?;
            loaded.collect()?;
            loaded.node.daemon.keeps_only(&loaded.before)?;
            collect_garbage()?;
            ensure!(
                loaded.objects.iter().all(|object| !object.exists()),
                "objects are left"
            );
        }
        Ok(())
    });
}

#[test]
fn two_images_share_a_closure_and_the_last_one_takes_it() {
    test(|host| {
        let loaded = Loaded::new(host, false)?;
        let other = reference("other");
        let layer = Layer::per_path(&[loaded.objects[0].path()])?;
        let archive = busybox_image(host, &other, [layer])?;
        loaded.node.containerd.import(NIX, &archive)?;
        loaded.node.containerd.remove_image(&loaded.image)?;
        loaded.collect()?;
        ensure!(
            loaded.all_exist(),
            "the second image does not hold what the first had, too"
        );
        loaded.node.containerd.remove_image(&other)?;
        loaded.collect()?;
        ensure!(
            loaded.objects.iter().all(|object| !object.exists()),
            "objects are left"
        );
        Ok(())
    });
}

#[test]
fn a_restarted_daemon_still_holds_what_it_held() {
    test(|host| {
        let mut loaded = Loaded::new(host, true)?;
        let held = loaded.node.daemon.config().kept()?;
        loaded.node.daemon.stop()?;
        collect_garbage()?;
        ensure!(loaded.all_exist(), "the roots went with the daemon");
        loaded.node.daemon.start_again()?;
        loaded.collect()?;
        ensure!(loaded.all_exist());
        ensure!(loaded.node.daemon.config().kept()?.gc_roots == held.gc_roots);
        let inner = loaded.objects[1].path();
        let ended = loaded
            .node
            .containerd
            .run(NIX, &loaded.image, &[BUSYBOX, "cat", inner])?;
        ensure!(ended.success()? == "content\n");
        Ok(())
    });
}

#[test]
fn a_closure_info_that_refers_to_nothing_holds_what_it_lists_all_the_same() {
    test(|host| {
        let node = Node::start(host)?;
        let store = Store::new(host)?;
        let object = store.build("object", "echo content > $out", &[])?;
        // Nix finds no reference in it, because the hash is not written in one piece.
        let (head, tail) = object.path().split_at("/nix/store/".len() + 10);
        let list = host.dir().join("list");
        fs::write(&list, "")?;
        let script = format!(
            "$busybox mkdir $out; echo {tail} | $busybox sed 's|^|{head}|' > $out/store-paths"
        );
        let builder = "$busybox cp $out/store-paths $out/copy; $busybox rm $out/copy";
        let info = store.build("closure-info", &format!("{script}; {builder}"), &[])?;
        ensure!(fs::read_to_string(Path::new(info.path()).join("store-paths"))?.contains(tail));
        let image = reference("loose");
        let layer = Layer::default()
            .dir("x")?
            .annotation(NIX_CLOSURE, info.path());
        node.containerd
            .import(NIX, &busybox_image(host, &image, [layer])?)?;
        info.release()?;
        object.release()?;
        collect_garbage()?;
        ensure!(
            object.exists(),
            "the collector took what the closure-info lists"
        );
        ensure!(
            node.containerd
                .run(NIX, &image, &[BUSYBOX, "cat", object.path()])?
                .success()?
                == "content\n"
        );
        Ok(())
    });
}
