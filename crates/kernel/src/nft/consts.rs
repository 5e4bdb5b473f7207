//! Numbers of include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h, and of libnftnl's user data (udata.h).

pub(crate) const NFNL_SUBSYS_NFTABLES: u16 = 10;
pub(crate) const BATCH_BEGIN: u16 = 16;
pub(crate) const BATCH_END: u16 = 17;
/// `NFNL_BATCH_GENID`
pub(crate) const BATCH_GENID: u16 = 1;
/// `NFPROTO_INET`
pub(crate) const INET: u8 = 1;

pub(crate) const NEWTABLE: u16 = 0;
pub(crate) const GETTABLE: u16 = 1;
pub(crate) const DELTABLE: u16 = 2;
pub(crate) const NEWCHAIN: u16 = 3;
pub(crate) const GETCHAIN: u16 = 4;
pub(crate) const DELCHAIN: u16 = 5;
pub(crate) const NEWRULE: u16 = 6;
pub(crate) const GETRULE: u16 = 7;
pub(crate) const DELRULE: u16 = 8;
pub(crate) const NEWSET: u16 = 9;
pub(crate) const GETSET: u16 = 10;
pub(crate) const DELSET: u16 = 11;
pub(crate) const NEWSETELEM: u16 = 12;
pub(crate) const GETSETELEM: u16 = 13;
pub(crate) const DELSETELEM: u16 = 14;
pub(crate) const NEWGEN: u16 = 15;
pub(crate) const GETGEN: u16 = 16;

/// `NFTA_LIST_ELEM`
pub(crate) const LIST_ELEM: u16 = 1;
/// `NFTA_GEN_ID`
pub(crate) const GEN_ID: u16 = 1;

pub(crate) const TABLE_NAME: u16 = 1;
pub(crate) const TABLE_FLAGS: u16 = 2;

pub(crate) const CHAIN_TABLE: u16 = 1;
pub(crate) const CHAIN_NAME: u16 = 3;
pub(crate) const CHAIN_HOOK: u16 = 4;
pub(crate) const CHAIN_POLICY: u16 = 5;
pub(crate) const CHAIN_TYPE: u16 = 7;
pub(crate) const HOOK_NUM: u16 = 1;
pub(crate) const HOOK_PRIORITY: u16 = 2;

pub(crate) const RULE_TABLE: u16 = 1;
pub(crate) const RULE_CHAIN: u16 = 2;
pub(crate) const RULE_HANDLE: u16 = 3;
pub(crate) const RULE_EXPRESSIONS: u16 = 4;
pub(crate) const RULE_USERDATA: u16 = 7;
/// `NFTNL_UDATA_RULE_COMMENT`, `NFTNL_UDATA_SET_ELEM_COMMENT`
pub(crate) const UDATA_COMMENT: u8 = 0;
/// nft's own bound on a comment in bytes (`NFTNL_UDATA_COMMENT_MAXLEN`).
pub(crate) const COMMENT_MAX: usize = 128;

pub(crate) const SET_TABLE: u16 = 1;
pub(crate) const SET_NAME: u16 = 2;
pub(crate) const SET_FLAGS: u16 = 3;
pub(crate) const SET_KEY_TYPE: u16 = 4;
pub(crate) const SET_KEY_LEN: u16 = 5;
pub(crate) const SET_DATA_TYPE: u16 = 6;
pub(crate) const SET_DATA_LEN: u16 = 7;
pub(crate) const SET_DESC: u16 = 9;
pub(crate) const SET_ID: u16 = 10;
pub(crate) const SET_USERDATA: u16 = 13;
/// `NFTA_SET_DESC_SIZE`
pub(crate) const DESC_SIZE: u16 = 1;
/// `NFTA_SET_DESC_CONCAT`
pub(crate) const DESC_CONCAT: u16 = 2;
/// `NFTA_SET_FIELD_LEN`
pub(crate) const FIELD_LEN: u16 = 1;
/// `NFTNL_UDATA_SET_KEYBYTEORDER`
pub(crate) const UDATA_KEY_BYTEORDER: u8 = 0;
/// `NFTNL_UDATA_SET_DATABYTEORDER`
pub(crate) const UDATA_DATA_BYTEORDER: u8 = 1;

pub(crate) const SET_F_CONSTANT: u32 = 0x2;
pub(crate) const SET_F_INTERVAL: u32 = 0x4;
pub(crate) const SET_F_MAP: u32 = 0x8;
pub(crate) const SET_F_TIMEOUT: u32 = 0x10;
/// `NFT_SET_EVAL`: rules put elements in.
pub(crate) const SET_F_EVAL: u32 = 0x20;
pub(crate) const SET_F_CONCAT: u32 = 0x80;
/// `NFT_DATA_VERDICT`
pub(crate) const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;

pub(crate) const ELEMS_TABLE: u16 = 1;
pub(crate) const ELEMS_SET: u16 = 2;
pub(crate) const ELEMS_ELEMENTS: u16 = 3;
pub(crate) const ELEM_KEY: u16 = 1;
pub(crate) const ELEM_DATA: u16 = 2;
pub(crate) const ELEM_FLAGS: u16 = 3;
/// `NFTA_SET_ELEM_USERDATA`
pub(crate) const ELEM_USERDATA: u16 = 6;
pub(crate) const ELEM_KEY_END: u16 = 10;
pub(crate) const ELEM_F_INTERVAL_END: u32 = 1;
pub(crate) const ELEM_F_CATCHALL: u32 = 2;

pub(crate) const DATA_VALUE: u16 = 1;
pub(crate) const DATA_VERDICT: u16 = 2;
pub(crate) const VERDICT_CODE: u16 = 1;
pub(crate) const VERDICT_CHAIN: u16 = 2;

pub(crate) const EXPR_NAME: u16 = 1;
pub(crate) const EXPR_DATA: u16 = 2;
