//go:build tools

// Package tools pins, in one go.mod, the programs that are built from others' packages as they are. One go.mod, so that all
// of them share one version of Kubernetes' libraries, gRPC and the rest, each of which is then compiled once.
package tools

import (
	_ "github.com/rancher/local-path-provisioner"
	_ "github.com/traefik/traefik/v3/cmd/traefik"
	_ "helm.sh/helm/v4/cmd/helm"
	_ "sigs.k8s.io/gateway-api/apis/v1"
	_ "sigs.k8s.io/kind"
)
