//! Owns: the newtypes every room speaks: [`Cidr`], [`AddressRange`], [`IfName`], [`OwnedName`], [`Mac`], [`Mark`], [`Proto`],
//! [`PortKey`], [`NodeName`], [`ObjectName`]; and [`FlatSet`], that holds few of them in little room.
//! Never does: I/O, planning, or anything with a kernel or API word beyond a name's syntax.
//! Tested by: the unit and property tests of each module (parse and print are inverse; bad input names the fix).

mod cidr;
mod flat;
mod names;
mod net;
mod range;

pub use cidr::{Cidr, CidrError};
pub use flat::FlatSet;
pub use names::{
    IfName, NameError, NodeName, ObjectName, OwnedName, POD_LINK_PREFIX, VXLAN_LINK_PREFIX, VXLAN6_LINK_PREFIX,
};
pub use net::{Family, FamilySet, Mac, MacError, Mark, PortKey, Proto, ProtoError};
pub use range::AddressRange;
