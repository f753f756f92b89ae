//! What a health check answers: kube-proxy's status, headers and body.

use http::{
    Response, StatusCode,
    header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS},
};
use serde::Serialize;

use crate::model::ObjectName;

/// How many endpoints the node has, for balancers that weigh nodes by it.
const ENDPOINT_WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The body.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: ServiceName<'a>,
    local_endpoints: u32,
    service_proxy_healthy: bool,
}

#[derive(Debug, Serialize)]
struct ServiceName<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// The answer for a Service with so many endpoints here: 200 if a balancer should send its clients to this node.
pub fn answer(service: &ObjectName, local_endpoints: u32, healthy: bool) -> Response<String> {
    let body = Body {
        service: ServiceName { namespace: &service.namespace, name: &service.name },
        local_endpoints,
        service_proxy_healthy: healthy,
    };
    // Strings, a number and a bool always have a JSON form.
    let mut response = Response::new(serde_json::to_string(&body).unwrap_or_default());
    if local_endpoints == 0 || !healthy {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(ENDPOINT_WEIGHT, HeaderValue::from(local_endpoints));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_healthy_node_with_endpoints_is_good() {
        let name = ObjectName::new("shop", "web");
        for (count, healthy, status) in [(3, true, 200), (0, true, 503), (3, false, 503), (0, false, 503)] {
            let response = answer(&name, count, healthy);
            assert_eq!(response.status().as_u16(), status);
            let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
            assert_eq!(header("content-type"), "application/json");
            assert_eq!(header("x-content-type-options"), "nosniff");
            assert_eq!(header("x-load-balancing-endpoint-weight"), count.to_string());
            let body: serde_json::Value = serde_json::from_str(response.body()).unwrap();
            assert_eq!(
                body,
                serde_json::json!({
                    "service": { "namespace": "shop", "name": "web" },
                    "localEndpoints": count,
                    "serviceProxyHealthy": healthy,
                })
            );
        }
    }
}
