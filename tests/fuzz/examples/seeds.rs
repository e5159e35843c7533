//! Writes the seeds of every target into `corpus`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let repository = crate_folder.join("../..");
    let seeds = [
        ("checkpoint", fuzz::checkpoint::seeds()),
        ("fasta", fuzz::fasta::seeds(&repository)),
        ("frames", fuzz::frames::seeds()),
        ("job", fuzz::job::seeds(&repository)),
        ("manifest", fuzz::manifest::seeds()),
        ("part", fuzz::part::seeds()),
        ("safetensors", fuzz::safetensors::seeds()),
    ];
    for (target, seeds) in seeds {
        let folder = crate_folder.join("corpus").join(target);
        std::fs::create_dir_all(&folder)?;
        for (number, seed) in seeds.into_iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number:02}")), seed)?;
        }
    }
    Ok(())
}
