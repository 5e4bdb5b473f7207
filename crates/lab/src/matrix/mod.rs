//! The connectivity matrix: which paths a cluster promises, asked with real packets.

mod facts;
mod own;
mod plan;
mod run;
mod table;

pub use facts::{EchoPod, Facts, Host, Service, ServicePort};
pub use plan::{Check, Client, Expect, Probe, Source, plan};
pub use run::{Options, settled, test};
pub use table::{Cell, Failure, Report, Row, render};
