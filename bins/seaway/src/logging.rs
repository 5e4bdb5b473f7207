//! The log flags that every long-running command has.

use telemetry::LogFormat;

/// How much to log, and in which form.
#[derive(clap::Args, Debug, Clone)]
pub struct LogArgs {
    /// error, warn, info, debug or trace, or directives such as info,source=debug
    #[arg(long, value_name = "LEVEL", env = "SEAWAY_LOG", default_value = "info", global = false)]
    log_level: String,
    /// human (colours on a terminal only) or json
    #[arg(long, value_name = "FORMAT", env = "SEAWAY_LOG_FORMAT", default_value_t = LogFormat::Human)]
    log_format: LogFormat,
}

impl LogArgs {
    /// Sets the log up.
    pub fn init(&self) -> anyhow::Result<()> {
        Ok(telemetry::init(&self.log_level, self.log_format)?)
    }
}
