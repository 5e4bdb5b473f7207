//! What the tests of plugins on a fake machine share.

use cni::{Env, Outcome};
use kernel_api::errno;
use kernel_fake::fault::Fault;
use kernel_fake::machine::FakeMachine;
use serde_json::Value;

/// Every way in which an effect fails.
pub const FAULTS: [Fault; 3] = [Fault::Refused(errno::EINVAL), Fault::Unanswered(errno::ENOBUFS), Fault::Crash];

/// One call of the plugin that `conf` names, for interface eth0 of the container whose namespace is at `netns`.
pub fn call(machine: &FakeMachine, netns: &str, command: &str, conf: &Value) -> Outcome {
    let text = |t: &str| Some(t.into());
    let env = Env {
        command: text(command),
        container_id: text("c1"),
        netns: text(netns),
        ifname: text("eth0"),
        args: None,
        path: text("/nothing"),
    };
    let plugin = plugins::by_name::<FakeMachine>(conf["type"].as_str().unwrap()).unwrap();
    cni::serve(plugin.as_ref(), plugins::by_name, &mut machine.clone(), &env, &mut conf.to_string().as_bytes(), 0)
}

/// `conf` with the fields of `more`.
pub fn with(mut conf: Value, more: &Value) -> Value {
    conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    conf
}
