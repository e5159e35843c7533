//! The burn engine through the whole product, where the build has it; how it is refused where it has not.

use crate::job::JobFolder;

fn job() -> JobFolder {
    JobFolder::new(b">a\nMKVLAWGRNDCQEHIPFSTY\n>b\nMKV\n>c\nACDEFGHIKLMNPQRSTVWYACDEFGHIKL\n").on_cpu()
}

#[test]
fn burn_devices_and_others_share_no_job() {
    for (devices, message) in [
        (r#"["cpu", "burn-cpu"]"#, "burn devices and others"),
        (r#"["burn-cpu", "sim:2"]"#, "burn devices and others"),
        (r#"["burn-cuda:0", "burn-cpu"]"#, "burn-cpu and burn-cuda"),
    ] {
        let job = job().set("devices.use", devices);
        job.run_into("results").expect(2).says([message, "hint: "]);
        assert!(!job.at("results").exists(), "{devices}");
    }
}

#[cfg(not(feature = "burn"))]
#[test]
fn a_build_without_it_says_how_to_get_it() {
    for (device, feature) in [("burn-cpu", "burn"), ("burn-cuda:1", "burn-cuda")] {
        let job = job().set("devices.use", format!(r#"["{device}"]"#));
        let hint = format!("cargo build --release --features {feature}`");
        job.run_into("results").expect(2).says([format!("`{device}` cannot be used"), hint]);
        assert!(!job.at("results").exists(), "{device}");
    }
}

#[cfg(feature = "burn")]
mod with_the_engine {
    use super::job;
    use crate::golden::Golden;
    use crate::job::JobFolder;

    #[test]
    fn it_agrees_with_the_cpu_engine() {
        let golden = Golden::read();
        let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny");
        for (layer, pooling) in [("last", "mean"), ("last", "max"), ("1", "bos"), ("1", "none")] {
            let job = JobFolder::new(golden.fasta("proteins"))
                .on_cpu()
                .set("model.source", tiny)
                .set("model.layer", layer)
                .set("model.pooling", pooling)
                .set("packing.token_budget", 4096);
            let expected = job.done_into("cpu").by_id();
            let job = job.set("devices.use", r#"["burn-cpu"]"#);
            let got = job.done_into("burn").by_id();
            assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            assert!(got != expected, "layer {layer}, {pooling}: it was the CPU engine");
            for (id, expected) in expected {
                let wide: Vec<f64> = expected.into_iter().map(f64::from).collect();
                golden.assert_close(&got[&id], &wide, &format!("layer {layer}, {pooling}, {id}"));
            }
        }
    }

    #[test]
    fn it_computes_in_the_precision_asked_for() {
        let run = |precision: &str| {
            let job = job().set("devices.use", r#"["burn-cpu"]"#).set("model.precision", precision);
            let outcome = job.done_into("results");
            (outcome.run["identity"]["model.precision"].as_str().unwrap().to_owned(), outcome.by_id())
        };
        let [auto, fp32, fp16] = ["auto", "fp32", "fp16"].map(run);
        assert_eq!(auto, fp32);
        assert_eq!((auto.0.as_str(), fp16.0.as_str()), ("fp32", "fp16"));
        assert_ne!(fp16.1, fp32.1);
    }

    /// Where a GPU could be used, `kernels/tests/burn.rs` uses it.
    #[cfg(feature = "burn-cuda")]
    #[test]
    fn what_a_gpu_lacks_is_named_before_anything_is_written() {
        if let Err(problem) = kernels::burn::check_cuda() {
            let job = job().set("devices.use", r#"["burn-cuda:0"]"#);
            job.run_into("results").expect(2).says(["`burn-cuda:0` cannot be used", &problem, "hint: "]);
            assert!(!job.at("results").exists());
        }
    }
}
