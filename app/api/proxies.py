"""Headers that reverse proxies, load balancers, tunnels and caches add to what they forward.

Programs that connect directly do not send them. A proxy that adds no header cannot be recognized:
a TCP forwarder, `ssh -L`, or one that speaks HTTP/1.1 and rewrites the Host to localhost.
"""

from __future__ import annotations

_OF_PROXIES = """via forwarded forwarded-for max-forwards proxy-connection front-end-https"""
_OF_THE_CLIENT = """
    client-ip cluster-client-ip incap-client-ip true-client-ip remote-addr x-client x-client-ip
    x-client-port x-client-verify x-cluster-client-ip x-coming-from x-peer-ip x-proxyuser-ip
    x-real-ip x-real-port x-remote-addr x-remote-ip x-source-ip x-sucuri-clientip"""
_OF_THE_REQUEST = """
    x-forwarded x-forwarder-for x-host x-https x-rewrite-url x-scheme x-script-name x-ssl
    x-url-scheme x-real-host x-real-proto x-request-id x-request-start x-queue-start x-varnish
    x-waws-unencoded-url disguised-host"""
_OF_THE_USER = """
    remote-user remote-groups remote-name remote-email x-access-token x-authenticated-user
    x-goog-authenticated-user-email x-serverless-authorization x-webauth-user x-client-dn
    x-client-cert"""
_NAMES = frozenset((_OF_PROXIES + _OF_THE_CLIENT + _OF_THE_REQUEST + _OF_THE_USER).split())
_PREFIXES_TEXT = """
    akamai- ali-cdn- cdn- cf- cloudfront- eagleeye- fastly- fly- gcore- incap- ngrok- proxy-client-
    ssl-client- tailscale- wl-proxy- x-akamai- x-amz- x-amzn- x-appengine- x-appgw- x-arr-
    x-auth-request- x-authentik- x-azure- x-bluecoat- x-cdn- x-client-cert- x-cloud-trace- x-edge-
    x-envoy- x-fd- x-forwarded- x-goog-iap- x-haproxy- x-hassio- x-heroku- x-ingress- x-kong- x-lb-
    x-nginx- x-ngrok- x-original- x-originating- x-pomerium- x-proxy- x-railway- x-remote-user
    x-render- x-sucuri- x-teleport- x-traefik- x-vercel-"""
_PREFIXES = tuple(_PREFIXES_TEXT.split())


def is_sent_by_proxies(name: str) -> bool:
    """Return whether a header, in lower case, is one that proxies add."""
    return name in _NAMES or name.startswith(_PREFIXES)
