//! The `ipam` section of a configuration: who gives the addresses.

use kernel_api::machine::Machine;
use serde_json::{Map, Value};

use crate::Error;
use crate::args::Command;
use crate::fields::bad;
use crate::result::CniResult;
use crate::skel::Context;

impl<M: Machine> Context<'_, M> {
    /// `ipam.type`; `None` when there is no `ipam` section or it is empty, which means an interface without addresses.
    ///
    /// # Errors
    /// Code 7 when the section is malformed.
    pub fn ipam_type(&self) -> Result<Option<String>, Error> {
        let Some(ipam) = self.fields().object("ipam")? else { return Ok(None) };
        Ok(ipam.text("type")?.filter(|t| !t.is_empty()).map(String::from))
    }

    /// Asks the IPAM plugin for addresses. It is given our whole configuration, as the specification wants.
    ///
    /// # Errors
    /// The plugin's, or code 7 when it gives none.
    pub fn ipam_add(&mut self, kind: &str) -> Result<CniResult, Error> {
        let result = self.delegate(kind, self.for_ipam(), Command::Add)?.unwrap_or_default();
        if result.ips.is_empty() {
            self.delegate(kind, self.for_ipam(), Command::Del)?;
            return Err(bad(format!("ipam.type is {kind:?}: it gave no address")));
        }
        Ok(result)
    }

    /// Gives the addresses back.
    ///
    /// # Errors
    /// The plugin's.
    pub fn ipam_del(&mut self, kind: &str) -> Result<(), Error> {
        self.delegate(kind, self.for_ipam(), Command::Del).map(drop)
    }

    /// CHECK, GC or STATUS of the IPAM plugin.
    ///
    /// # Errors
    /// The plugin's.
    pub fn ipam_verb(&mut self, kind: &str, command: Command) -> Result<(), Error> {
        self.delegate(kind, self.for_ipam(), command).map(drop)
    }

    /// Runs `make` with the IPAM plugin's result (nothing without one); when it fails, the addresses are given back.
    ///
    /// # Errors
    /// Those of the IPAM plugin and of `make`.
    pub fn with_addresses(
        &mut self,
        make: impl FnOnce(&mut Self, CniResult) -> Result<CniResult, Error>,
    ) -> Result<CniResult, Error> {
        let Some(kind) = self.ipam_type()? else { return make(self, CniResult::default()) };
        let given = self.ipam_add(&kind)?;
        make(self, given).map_err(|e| {
            let undo = self.ipam_del(&kind);
            crate::ops::undone(e, undo)
        })
    }

    fn for_ipam(&self) -> Map<String, Value> {
        self.conf.clone()
    }
}
