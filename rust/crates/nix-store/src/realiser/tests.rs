use super::*;

const A: &str = "8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-a";
const B: &str = "9kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-b";
const C: &str = "7kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-c";

/// How long anything may take that is certain to happen.
const BOUND: Duration = Duration::from_secs(60);

struct Store {
    dir: tempfile::TempDir,
    store_dir: StoreDir,
    timeout: Duration,
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store_dir = StoreDir::new(dir.path().to_str().unwrap()).unwrap();
        Self {
            dir,
            store_dir,
            timeout: BOUND,
        }
    }

    fn path(&self, base: &str) -> StorePath {
        self.store_dir
            .parse(&format!("{}/{base}", self.store_dir))
            .unwrap()
    }

    fn realiser(&self, builder: &str) -> Realiser {
        let program = self.dir.path().join("builder");
        let text = self.dir.path().join("builder.sh");
        fs::write(&text, format!("#!/bin/sh\n{builder}\n")).unwrap();
        // Made by another process: what this one has open for writing, a child of another test may
        // inherit, and then it cannot be run (ETXTBSY).
        let mut install = std::process::Command::new("install");
        let installed = install.args(["-m", "755"]).args([&text, &program]).status();
        assert!(installed.unwrap().success());
        Realiser::new(RealiserOptions {
            store_dir: self.store_dir.clone(),
            external_builder: Some(program),
            timeout: Some(self.timeout),
        })
    }

    async fn realise(
        &self,
        builder: &str,
        layer: &LayerClosure,
    ) -> (Result<Realised, Error>, GcRoots) {
        let realiser = self.realiser(builder);
        let roots = realiser.roots(self.dir.path().join("gcroots/7"));
        let cancel = CancellationToken::new();
        (realiser.realise(layer, &roots, &cancel).await, roots)
    }
}

#[tokio::test]
async fn an_external_builder_gets_link_and_path_and_its_links_are_the_closure() {
    let store = Store::new();
    let layer = LayerClosure {
        closure_info: None,
        paths: [store.path(B), store.path(A)].into_iter().collect(),
    };
    let (realised, roots) = store
        .realise(r#"echo x > "$2" && ln -s "$2" "$1""#, &layer)
        .await;
    let realised = realised.unwrap();
    assert_eq!(realised.closure, layer.paths);
    assert_eq!(realised.fetched, layer.paths.paths());
    assert_eq!(roots.read().unwrap(), Some(layer.paths));
}

#[tokio::test]
async fn a_closure_info_stands_for_the_paths_that_it_lists() {
    let store = Store::new();
    let layer = LayerClosure {
        closure_info: Some(store.path(A)),
        paths: Closure::default(),
    };
    let builder = format!(
        r#"case "$2" in *-a) mkdir "$2" && echo {} > "$2/store-paths";; *) echo x > "$2";; esac; ln -s "$2" "$1""#,
        store.path(B)
    );
    let (realised, roots) = store.realise(&builder, &layer).await;
    let expected: Closure = [store.path(B)].into_iter().collect();
    let realised = realised.unwrap();
    assert_eq!(realised.closure, expected);
    // The closure-info itself was fetched too.
    assert_eq!(realised.fetched, [store.path(B), store.path(A)]);
    assert_eq!(roots.read().unwrap(), Some(expected));
}

#[tokio::test]
async fn of_a_layer_in_both_formats_the_union_is_recorded() {
    let store = Store::new();
    // Here already, and not in the list of the closure-info.
    fs::write(store.path(C).as_path(), "").unwrap();
    let layer = LayerClosure {
        closure_info: Some(store.path(A)),
        paths: [store.path(C)].into_iter().collect(),
    };
    let builder = format!(
        r#"case "$2" in *-a) mkdir "$2" && echo {} > "$2/store-paths";; *) echo x > "$2";; esac; ln -s "$2" "$1""#,
        store.path(B)
    );
    let (realised, roots) = store.realise(&builder, &layer).await;
    let union: Closure = [store.path(B), store.path(C)].into_iter().collect();
    assert_eq!(realised.unwrap().closure, union);
    assert_eq!(roots.read().unwrap(), Some(union));
}

#[tokio::test]
async fn failures_say_what_failed_and_why() {
    let mut store = Store::new();
    let layer = LayerClosure {
        closure_info: None,
        paths: [store.path(A)].into_iter().collect(),
    };
    for (builder, timeout, expected) in [
        ("echo no such luck >&2; exit 4", BOUND, "no such luck"),
        (
            "sleep 100",
            Duration::from_secs(1),
            "did not end within 1 s",
        ),
        ("exit 0", BOUND, "does not exist"),
    ] {
        store.timeout = timeout;
        let (realised, _) = store.realise(builder, &layer).await;
        let message = realised.unwrap_err().to_string();
        assert!(
            message.contains(expected) && message.contains("builder"),
            "{message}"
        );
    }
    let realiser = Realiser::new(RealiserOptions {
        store_dir: store.store_dir.clone(),
        external_builder: Some("/nowhere/builder".into()),
        timeout: None,
    });
    let roots = realiser.roots(store.dir.path().join("gcroots/8"));
    let message = realiser
        .realise(&layer, &roots, &CancellationToken::new())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("/nowhere/builder") && message.contains("no such program"),
        "{message}"
    );
}

#[tokio::test]
async fn a_link_to_something_else_is_refused() {
    let store = Store::new();
    let layer = LayerClosure {
        closure_info: None,
        paths: [store.path(A)].into_iter().collect(),
    };
    let link = store.dir.path().join("gcroots/7").join(A);
    for (builder, found) in [
        (r#"ln -s /elsewhere "$1""#, "leads to \"/elsewhere\""),
        (r#"echo x > "$1""#, "cannot be read as one"),
    ] {
        let builder = format!(r#"echo x > "$2"; {builder}"#);
        let (realised, roots) = store.realise(&builder, &layer).await;
        let error = realised.unwrap_err();
        let message = error.to_string();
        for expected in ["builder\"", link.to_str().unwrap(), store.path(A).as_str()] {
            assert!(message.contains(expected), "{expected} is not in {message}");
        }
        assert!(
            matches!(error, Error::OtherLink { .. }) && message.contains(found),
            "{message}"
        );
        fs::remove_dir_all(roots.dir()).unwrap();
        fs::remove_file(store.path(A).as_path()).unwrap();
    }
}

/// No Nix knows this store.
#[tokio::test]
async fn a_path_without_a_link_is_refused_where_nix_cannot_make_it() {
    let store = Store::new();
    for (closure_info, paths) in [(None, &[A][..]), (Some(A), &[])] {
        let layer = LayerClosure {
            closure_info: closure_info.map(|base| store.path(base)),
            paths: paths.iter().map(|base| store.path(base)).collect(),
        };
        let (realised, _) = store.realise(r#"echo x > "$2""#, &layer).await;
        let error = realised.unwrap_err();
        let message = error.to_string();
        assert!(
            matches!(error, Error::NotRooted { .. }) && message.contains("builder\""),
            "{message}"
        );
        let reason = std::error::Error::source(&error).unwrap().to_string();
        assert!(reason.contains("`nix-store`"), "{reason}");
    }
}

#[tokio::test]
async fn what_is_there_already_is_present_and_not_fetched() {
    let store = Store::new();
    let realiser = store.realiser(r#"ln -s "$2" "$1""#);
    let present = |closure_info: Option<&str>, paths: &[&str]| {
        realiser.is_present(&LayerClosure {
            closure_info: closure_info.map(|base| store.path(base)),
            paths: paths.iter().map(|base| store.path(base)).collect(),
        })
    };
    assert!(!present(None, &[C]));
    assert!(!present(Some(A), &[]));
    fs::write(store.path(C).as_path(), "").unwrap();
    assert!(present(None, &[C]));
    assert!(!present(None, &[B, C]));
    let info = store.path(A);
    fs::create_dir(info.as_path()).unwrap();
    let list = |bases: &[&str]| {
        let lines: String = bases
            .iter()
            .map(|base| format!("{}\n", store.path(base)))
            .collect();
        fs::write(info.as_path().join("store-paths"), lines).unwrap();
    };
    list(&[B]);
    assert!(!present(Some(A), &[C]));
    list(&[C]);
    assert!(present(Some(A), &[C]));
    assert!(!present(Some(A), &[B]));

    // Later than the clock of the file system has its next tick.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let layer = LayerClosure {
        closure_info: Some(info),
        paths: Closure::default(),
    };
    let (realised, _) = store.realise(r#"ln -s "$2" "$1""#, &layer).await;
    assert!(realised.unwrap().fetched.is_empty());
}

#[tokio::test]
async fn a_cancelled_realisation_says_so() {
    let store = Store::new();
    let layer = LayerClosure {
        closure_info: None,
        paths: [store.path(A)].into_iter().collect(),
    };
    let realiser = store.realiser("sleep 100");
    let roots = realiser.roots(store.dir.path().join("gcroots/7"));
    let cancel = CancellationToken::new();
    let (realised, ()) = tokio::join!(realiser.realise(&layer, &roots, &cancel), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        cancel.cancel();
    });
    assert!(matches!(realised, Err(Error::Cancelled)));
}
