//go:build tools

// Package node pins, in one go.mod, every program of a node: they share Kubernetes' dependencies, which are compiled once.
package node

import (
	_ "github.com/rancher/local-path-provisioner"
	_ "go.etcd.io/etcd/server/v3"
	_ "sigs.k8s.io/kind"
)
