"""Where Sockeye answers otherwise than kube-proxy (nftables mode), and why: rules for a run of both side by side.

Each rule names what kube-proxy's clients see and what Sockeye's see; whatever no rule names is a defect. docs/conformance.md
explains the differences at length.

A rule is (id, kinds, test, reason). test(a, b, p) gets what the clients of kube-proxy (a) and of Sockeye (b) observed: b the
backends reached ("passed": the connection left the node untouched), e the errors; and the probe p: client (pod, host, ext, rpod),
front (clusterip nodeport external lb localhost otheraddr, wrongport: another port of such an address, stale: an address that no
Service has any more, hcport: a health check node port), ip, port, proto and svc, the Service.
"""
import ipaddress

NFT = ("nft", "sockeye")
AT_THE_SOCKET = ("pod", "host")


def spec(p):
    return p["svc"]["spec"] if p["svc"] else {}


def is_vip(p):
    """Whether the address is one of the load balancer's, whatever else it is."""
    ingress = (p["svc"] or {}).get("status", {}).get("loadBalancer", {}).get("ingress", [])
    return any(i.get("ip") == p["ip"] and i.get("ipMode") != "Proxy" for i in ingress)


def is_local(p):
    """Whether a Local policy applies to the frontend for clients on the node."""
    return p["front"] == "clusterip" and spec(p).get("internalTrafficPolicy") == "Local"


def family(p):
    return ipaddress.ip_address(p["ip"]).version


def has_ranges(p):
    ranges = [r.strip() for r in spec(p).get("loadBalancerSourceRanges", [])]
    return any(ipaddress.ip_network(r, strict=False).version == family(p) for r in ranges)


RULES = [
    ("refused-where-kube-proxy-drops: no local endpoint", NFT,
     lambda a, b, p: p["client"] in AT_THE_SOCKET and is_local(p) and only(a, "timeout") and only(b, "refused"),
     "a Local policy and endpoints on other nodes only: an error at once is more use to a client on the node than a time-out"),
    ("refused-where-kube-proxy-drops: source ranges", NFT,
     lambda a, b, p: p["client"] in AT_THE_SOCKET and is_vip(p) and has_ranges(p) and only(a, "timeout") and only(b, "refused"),
     "loadBalancerSourceRanges do not hold the client: at the socket nothing can be dropped, so the call fails"),
    ("refused-where-kube-proxy-drops: no such Service", NFT,
     lambda a, b, p: p["front"] in ("stale", "wrongport") and is_cluster_ip(p) and only(a, "timeout") and only(b, "refused"),
     "an address of a ServiceCIDR that no Service has: at the socket nothing can be dropped, so the call fails; packets from outside are "
     "answered likewise, as kube-proxy answers them at other ports of a ClusterIP"),
    ("passed-where-kube-proxy-drops: another proxy's Service", NFT,
     lambda a, b, p: hidden(p) and is_cluster_ip(p) and only(a, "timeout") and only(b, "passed"),
     "a Service with the label service-proxy-name belongs to another proxy, which must get the connection"),
    ("served-at-localhost", NFT,
     lambda a, b, p: p["front"] == "localhost" and p["client"] == "host" and only(a, "refused") and not b["e"] and b["b"] != ["passed"],
     "node ports answer at 127.0.0.1 and ::1 too, TCP and UDP: at the socket this costs nothing and opens nothing to others"),
    ("health-check-at-both-families", NFT,
     lambda a, b, p: p["front"] == "hcport" and f"IPv{family(p)}" not in spec(p).get("ipFamilies", []) and only(a, "refused")
     and len(b["b"] + b["e"]) == 1 and (b["b"] + b["e"])[0].startswith(("200,", "503,")),
     "healthCheckNodePort of a Service of one family answers at the node's addresses of both: load balancers of dual-stack nodes "
     "ask at either"),
    ("hairpin-works-without-node-name", NFT,
     lambda a, b, p: p["client"] == "pod" and p["proto"] != "http" and (a["e"] in (["timeout"], ["answer from another address"]))
     and b["e"] == [] and set(a["b"]) <= set(b["b"]) and any(map(is_pod_itself, set(b["b"]) - set(a["b"])))
     and (not a["b"] or all(map(is_pod_itself, set(b["b"]) - set(a["b"])))),
     "a pod that reaches itself through a Service whose endpoint has no, or a wrong, nodeName: nothing is rewritten per packet, so "
     "nothing has to be masqueraded; kube-proxy masquerades only endpoints of its own node, and the connection hangs; where each draw "
     "hung, the few that were made need not have met the other endpoints"),
]


def is_pod_itself(backend):
    return backend.startswith(("10.128.1.2:", "[fd00:10:128:1::2]:"))
