// Package ecs stands in for the provider that finds services on AWS: the SDK behind it is a fifth of what Traefik compiles.
package ecs

import (
	"errors"

	"github.com/traefik/traefik/v3/pkg/config/dynamic"
	"github.com/traefik/traefik/v3/pkg/safe"
)

// Provider finds nothing.
type Provider struct{}

// Init refuses to be configured.
func (p *Provider) Init() error { return errors.New("built without AWS ECS") }

// Provide is never reached.
func (p *Provider) Provide(chan<- dynamic.Message, *safe.Pool) error { return nil }
