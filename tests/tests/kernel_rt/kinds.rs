//! What CNI plugins ask for, on this kernel and its fake.

use kernel::{Netns, Rt};

use crate::agree::{agree, table};

#[test]
fn kernel_and_fake_accept_and_refuse_the_same_of_plugins() {
    let ns = Netns::new().unwrap();
    agree(Rt::open_in(&ns).unwrap(), table(), false);
}
