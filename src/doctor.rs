//! The command `doctor`: what this machine offers, what is missing and how to get it.

use crate::cli::DoctorArguments;
use crate::failure::{Exit, Failure};

pub(crate) fn doctor(_arguments: &DoctorArguments) -> Result<Exit, Failure> {
    Ok(Exit::Done)
}
