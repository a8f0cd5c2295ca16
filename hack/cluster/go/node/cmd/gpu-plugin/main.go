// gpu-plugin offers GPUS devices of nvidia.com/gpu through the kubelet's device-plugin API on a node that has none. The
// devices are make-believe; scheduling, allocation by the kubelet and the container's environment are real.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	deviceplugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const (
	resourceName = "nvidia.com/gpu"
	socketName   = "test-gpu.sock"
)

type plugin struct {
	deviceplugin.UnimplementedDevicePluginServer
	devices []*deviceplugin.Device
}

func (p *plugin) GetDevicePluginOptions(context.Context, *deviceplugin.Empty) (*deviceplugin.DevicePluginOptions, error) {
	return &deviceplugin.DevicePluginOptions{}, nil
}

// ListAndWatch sends the devices once: they never change, so all that is left is to keep the stream open.
func (p *plugin) ListAndWatch(_ *deviceplugin.Empty, stream deviceplugin.DevicePlugin_ListAndWatchServer) error {
	if err := stream.Send(&deviceplugin.ListAndWatchResponse{Devices: p.devices}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// Allocate tells the container which devices it got, and to compute on the CPU in their stead.
func (p *plugin) Allocate(_ context.Context, request *deviceplugin.AllocateRequest) (*deviceplugin.AllocateResponse, error) {
	response := &deviceplugin.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		response.ContainerResponses = append(response.ContainerResponses, &deviceplugin.ContainerAllocateResponse{
			Envs: map[string]string{
				"NVIDIA_VISIBLE_DEVICES": strings.Join(container.DevicesIds, ","),
				"FINETUNE_DEVICE":        "cpu",
			},
		})
	}
	return response, nil
}

func makeDevices(count int) []*deviceplugin.Device {
	devices := make([]*deviceplugin.Device, count)
	for i := range devices {
		devices[i] = &deviceplugin.Device{ID: fmt.Sprintf("GPU-test-%d", i), Health: deviceplugin.Healthy}
	}
	return devices
}

func register() error {
	connection, err := grpc.NewClient("unix://"+deviceplugin.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err = deviceplugin.NewRegistrationClient(connection).Register(ctx, &deviceplugin.RegisterRequest{
		Version: deviceplugin.Version, Endpoint: socketName, ResourceName: resourceName,
	})
	return err
}

// serve returns when the kubelet has restarted: it then empties the folder of the sockets and forgets its plugins.
func serve(devices []*deviceplugin.Device) error {
	socket := filepath.Join(deviceplugin.DevicePluginPath, socketName)
	os.Remove(socket) // of a former life
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	deviceplugin.RegisterDevicePluginServer(server, &plugin{devices: devices})
	go server.Serve(listener)
	defer server.Stop()
	if err := register(); err != nil {
		return err
	}
	fmt.Println("registered", len(devices), resourceName)
	for {
		time.Sleep(time.Second)
		if _, err := os.Stat(socket); err != nil {
			return err
		}
	}
}

func main() {
	count, err := strconv.Atoi(os.Getenv("GPUS"))
	if err != nil || count < 1 {
		fmt.Fprintln(os.Stderr, "gpu-plugin: GPUS must be a positive number")
		os.Exit(2)
	}
	for ; ; time.Sleep(time.Second) {
		fmt.Println(serve(makeDevices(count)))
	}
}
