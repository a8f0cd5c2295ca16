//go:build tools

// Package gateway pins Traefik and the Gateway API's CRDs. Traefik has replace lines, which `go install` refuses, so it needs
// a go.mod that repeats them.
package gateway

import (
	_ "github.com/traefik/traefik/v3/cmd/traefik"
	_ "sigs.k8s.io/gateway-api/apis/v1"
)
