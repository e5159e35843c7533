//! `export`: the same values in the formats of other tools, read back by readers that are not ours.

use std::fs;

use half::f16;
use rust_hdf5::H5File;
use safetensors::SafeTensors;

use crate::golden::bits;
use crate::job::JobFolder;
use crate::process::{Finished, program, run};
use crate::proteins::fasta;

fn export(job: &JobFolder, to: &str, more: &[&str]) -> Finished {
    run(program(["export", "results", "--to", to]).args(more).current_dir(job.path()))
}

fn job() -> JobFolder {
    JobFolder::new(fasta(81, 150, 5..60))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

#[test]
fn every_format_holds_the_values_of_the_parts() {
    let job = job();
    let rows = job.done_into("results").rows();
    let ids: String = rows.iter().map(|row| format!("{}\n", row.id)).collect();
    let values: Vec<f32> = rows.iter().flat_map(|row| row.embedding.clone()).collect();

    let finished = export(&job, "npy", &[]).expect(0);
    assert_eq!(finished.stdout, "results/export/embeddings.npy\nresults/export/ids.txt\n");
    let npy = fs::read(job.at("results/export/embeddings.npy")).unwrap();
    let npy = npyz::NpyFile::new(npy.as_slice()).unwrap();
    assert_eq!(npy.shape(), [150, 64]);
    assert_eq!(bits(&npy.into_vec::<f32>().unwrap()), bits(&values));
    assert_eq!(fs::read_to_string(job.at("results/export/ids.txt")).unwrap(), ids);

    export(&job, "safetensors", &["--output", "tensors"]).expect(0);
    let file = fs::read(job.at("tensors/embeddings.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let embeddings = tensors.tensor("embeddings").unwrap();
    assert_eq!(embeddings.shape(), [150, 64]);
    assert_eq!(bits(&floats(embeddings.data())), bits(&values));
    assert_eq!(fs::read_to_string(job.at("tensors/ids.txt")).unwrap(), ids);

    export(&job, "tsv", &[]).expect(0);
    let text = fs::read_to_string(job.at("results/export/embeddings.tsv")).unwrap();
    let mut lines = text.lines();
    assert!(lines.next().unwrap().starts_with("id\tindex\tlength\te0\te1\t"));
    for (row, line) in rows.iter().zip(lines.by_ref()) {
        let columns: Vec<&str> = line.split('\t').collect();
        assert_eq!(columns[..3], [row.id.clone(), row.index.to_string(), row.length.to_string()]);
        let read: Vec<f32> = columns[3..].iter().map(|column| column.parse().unwrap()).collect();
        assert_eq!(bits(&read), bits(&row.embedding));
    }
    assert_eq!(lines.next(), None);

    export(&job, "hdf5", &[]).expect(0);
    let file = H5File::open(job.at("results/export/embeddings.h5")).unwrap();
    for row in &rows {
        let bytes = file.dataset(&row.id).unwrap().read_raw_bytes().unwrap();
        let read: Vec<f16> =
            bytes.chunks_exact(2).map(|two| f16::from_le_bytes(two.try_into().unwrap())).collect();
        let rounded: Vec<f16> = row.embedding.iter().map(|&value| f16::from_f32(value)).collect();
        assert_eq!(read, rounded, "{}", row.id);
    }
}

#[test]
fn residues_keep_their_own_vectors() {
    let job = job().set("model.pooling", "none");
    let rows = job.done_into("results").rows();
    export(&job, "safetensors", &[]).expect(0);
    let file = fs::read(job.at("results/export/embeddings.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    for row in &rows {
        let tensor = tensors.tensor(&row.index.to_string()).unwrap();
        assert_eq!(tensor.shape(), [row.length as usize, 64]);
        assert_eq!(bits(&floats(tensor.data())), bits(&row.embedding));
    }
    for format in ["npy", "tsv"] {
        let refused = export(&job, format, &["--output", "elsewhere"]).expect(2);
        refused.says([&format!("{format} holds one vector per record"), "export safetensors or hdf5"]);
    }
    assert!(!job.at("elsewhere").exists());
}

#[test]
fn an_unfinished_result_is_not_exported() {
    let job = job().set("restart.restarts_per_device_max", 0).simulating("fault=exit@batch:3");
    job.run_into("results").expect(75);
    export(&job, "npy", &[]).expect(4).says(["is not complete", "hint: finish it with `run` first"]);
    assert!(!job.at("results/export").exists());
}

#[test]
fn an_export_is_overwritten_only_if_asked() {
    let job = job();
    job.done_into("results");
    export(&job, "tsv", &[]).expect(0);
    let path = job.at("results/export/embeddings.tsv");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, "mine").unwrap();
    export(&job, "tsv", &[]).expect(2).says(["exists", "--force"]);
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    export(&job, "tsv", &["--force"]).expect(0);
    assert_eq!(fs::read(&path).unwrap(), whole);
    // An export beside the parts is none of verify's business.
    run(program(["verify", "results"]).current_dir(job.path())).expect(0);
}

#[test]
fn a_fresh_start_says_that_exports_of_the_earlier_result_stay() {
    let job = job();
    let message = "what was exported of the earlier result stays";
    let fresh = || run(job.command_into("results").arg("--fresh")).expect(0);
    job.done_into("results");
    assert!(!fresh().stderr.contains(message));
    export(&job, "tsv", &[]).expect(0);
    fresh().says([message, "results/export"]);
    assert!(job.at("results/export/embeddings.tsv").exists());
}

#[test]
fn exports_into_one_folder_do_not_mix() {
    let job = job();
    job.done_into("results");
    export(&job, "npy", &[]).expect(0);
    let files = ["embeddings.npy", "ids.txt"].map(|name| job.at("results/export").join(name));
    let whole = files.each_ref().map(|path| fs::read(path).unwrap());
    for name in [".embeddings.npy.tmp", ".ids.txt.tmp"] {
        // What another export has written so far.
        let temporary = job.write(&format!("results/export/{name}"), "half");
        let other = fs::File::options().write(true).open(&temporary).unwrap();
        other.lock().unwrap();
        export(&job, "npy", &["--force"]).expect(2).says(["another export is writing", "--output"]);
        assert_eq!(fs::read(&temporary).unwrap(), b"half");
        assert_eq!(files.each_ref().map(|path| fs::read(path).unwrap()), whole);
        export(&job, "npy", &["--output", "elsewhere", "--force"]).expect(0);
        drop(other);
    }
    // Left by one that was killed.
    export(&job, "npy", &["--force"]).expect(0);
    assert_eq!(fs::read_dir(job.at("results/export")).unwrap().count(), 2);
}

#[test]
fn a_result_with_missing_or_damaged_parts_is_incomplete() {
    let job = job();
    let whole = job.done_into("results");
    let name = "part-00001.parquet";
    let path = job.at("results/embeddings").join(name);
    let bytes = &whole.parts[name];
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2..].fill(0);
    for damage in [None, Some(&bytes[..bytes.len() - 1]), Some(&damaged[..])] {
        match damage {
            None => fs::remove_file(&path).unwrap(),
            Some(bytes) => fs::write(&path, bytes).unwrap(),
        }
        export(&job, "npy", &[]).expect(4).says([name, "hint: the `run` command"]);
        assert!(!job.at("results/export/embeddings.npy").exists());
    }
    job.run_into("results").expect(0);
    export(&job, "npy", &[]).expect(0);
}
