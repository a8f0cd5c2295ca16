// Package plugins stands in for plugins, which bring an interpreter for Go and a runtime for WebAssembly.
package plugins

import (
	"context"
	"errors"
	"net/http"

	"github.com/traefik/traefik/v3/pkg/provider"
)

var errNone = errors.New("built without plugins")

type (
	// Constructor makes a plugin's handler.
	Constructor func(context.Context, http.Handler) (http.Handler, error)
	// Descriptor is a plugin as it is configured.
	Descriptor struct{ ModuleName string }
	// LocalDescriptor is a plugin on disk as it is configured.
	LocalDescriptor struct{ ModuleName string }
	// Builder builds nothing.
	Builder struct{}
	// Manager manages nothing.
	Manager struct{}
	// ManagerOptions would be a Manager's.
	ManagerOptions struct{ Output string }
	// RegistryDownloader downloads nothing.
	RegistryDownloader struct{}
	// RegistryDownloaderOptions would be a RegistryDownloader's.
	RegistryDownloaderOptions struct {
		HTTPClient   *http.Client
		ArchivesPath string
	}
)

// NewRegistryDownloader refuses.
func NewRegistryDownloader(RegistryDownloaderOptions) (*RegistryDownloader, error) {
	return nil, errNone
}

// NewManager refuses.
func NewManager(*RegistryDownloader, ManagerOptions) (*Manager, error) { return nil, errNone }

// SetupRemotePlugins refuses.
func SetupRemotePlugins(*Manager, map[string]Descriptor) error { return errNone }

// SetupLocalPlugins refuses.
func SetupLocalPlugins(map[string]LocalDescriptor) error { return errNone }

// NewBuilder gives a builder for the usual case, that no plugin is configured.
func NewBuilder(*Manager, map[string]Descriptor, map[string]LocalDescriptor) (*Builder, error) {
	return &Builder{}, nil
}

// Build refuses.
func (*Builder) Build(string, map[string]any, string) (Constructor, error) { return nil, errNone }

// BuildProvider refuses.
func (*Builder) BuildProvider(string, map[string]any) (provider.Provider, error) { return nil, errNone }
