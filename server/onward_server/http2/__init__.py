"""HTTP/2 for servers (RFC 9113, header compression of RFC 7541), as far as gRPC uses it."""
