//! `seaway agent --cleanup`: nothing of ours stays on the node.

use anyhow::Context;
use fabric::{Fabric, FabricKernel, Image, Joined};
use ipam::IfThere;
use kernel::{Nftables, Rt, Sysctls};
use kernel_api::Nft;
use kernel_api::nft::{NftRequest, TableName};
use plan::{Caps, Kernel, converge};

use super::{AgentArgs, conflist, lock};

/// Removes links (pods' included), routes, neighbours, forwarding entries, the nftables table, the CNI configuration,
/// the plugin's records and the Node's annotations. Forwarding sysctls stay: another may rely on them by now.
pub fn run(args: &AgentArgs) -> anyhow::Result<()> {
    let _lock = lock::one_agent().context("--cleanup works only while no agent does")?;
    // The configuration first: from here on no runtime asks for a new pod.
    let file = args.cni_conf_dir.join(conflist::FILE);
    if remove(&file)? {
        println!("removed {}", file.display());
    }
    if let Some(file) = &args.flannel_subnet_file
        && remove(file)?
    {
        println!("removed {}", file.display());
    }
    let host = Joined { rt: Rt::open().context("open rtnetlink")?, sysctls: Sysctls::open().context("open sysctls")? };
    let mut fabric = FabricKernel::new(host, &Caps::default());
    let have = fabric.observe()?;
    let done = converge(&Fabric, &mut fabric, &Image::default(), Some(&have))?;
    println!("removed {} links, routes and entries", done.ops);
    if let Some(table) = TableName::recognise("seaway") {
        let mut nft = Nftables::open().context("open nf_tables")?;
        match nft.commit(&[NftRequest::TableDel(table.clone())]) {
            Ok(()) => println!("removed nftables table inet {table}"),
            Err(e) if e.absent() => {}
            Err(e) => return Err(e).context("remove the nftables table"),
        }
    }
    let removed = std::fs::remove_dir_all(&args.ipam_dir).if_there();
    if removed.with_context(|| format!("remove {}", args.ipam_dir.display()))?.is_some() {
        println!("removed {}", args.ipam_dir.display());
    }
    // What the plugin made beside interfaces; other networks' ports are theirs.
    cni::sweep(&mut kernel::Linux, &args.ipam_dir, conflist::NETWORK).context("remove host ports and limits")?;
    let mut nft = Nftables::open().context("open nf_tables")?;
    if cni::ports::observe(&mut nft).context("look at the host ports")?.owners().is_empty() {
        match nft.commit(&[NftRequest::TableDel(cni::ports::table())]) {
            Err(e) if !e.absent() => return Err(e).context("remove the table of host ports"),
            _ => {}
        }
    }
    if let Some(node) = args.node.as_ref().filter(|_| args.source == super::fleet::From::Kubernetes) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let annotations = [
            (resolve::annotations::BACKEND, None),
            (resolve::annotations::VXLAN, None),
            (resolve::annotations::SUBNETS, None),
        ];
        let removed = runtime.block_on(async {
            tokio::time::timeout(std::time::Duration::from_secs(5), async {
                source::connect_at(&args.api, &args.api_server).await?.annotate_node(node, annotations).await
            })
            .await
        });
        match removed {
            Ok(Ok(())) => println!("removed the annotations of Node/{node}"),
            Ok(Err(e)) => eprintln!("seaway: the annotations of Node/{node} stay: {e}"),
            Err(_) => eprintln!("seaway: the annotations of Node/{node} stay: {} does not answer", args.api),
        }
    }
    Ok(())
}

fn remove(file: &std::path::Path) -> anyhow::Result<bool> {
    let removed = std::fs::remove_file(file).if_there().with_context(|| format!("remove {}", file.display()))?;
    Ok(removed.is_some())
}
