// k8s is all of Kubernetes in one binary: the name it is called by (a symlink, or the first argument) picks the program.
// Linking once instead of seven times is most of what makes a node image affordable on two cores.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubeapiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kubecontrollermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kubeproxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	kubescheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubeadm "k8s.io/kubernetes/cmd/kubeadm/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/restclient"
	_ "k8s.io/component-base/metrics/prometheus/version"
)

// Each entry runs one program to its end and returns its exit code.
var programs = map[string]func() int{
	"kube-apiserver":          component(kubeapiserver.NewAPIServerCommand),
	"kube-controller-manager": component(kubecontrollermanager.NewControllerManagerCommand),
	"kube-scheduler":          component(func() *cobra.Command { return kubescheduler.NewSchedulerCommand() }),
	"kube-proxy":              component(kubeproxy.NewProxyCommand),
	"kubelet":                 component(func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }),
	"kubeadm":                 func() int { return exitCode(kubeadm.Run()) },
	"kubectl":                 func() int { return exitCode(cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand())) },
	"node-network":            func() int { return exitCode(configureNodeNetwork()) },
}

func component(newCommand func() *cobra.Command) func() int {
	return func() int { return cli.Run(newCommand()) }
}

func exitCode(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func main() {
	name := filepath.Base(os.Args[0])
	if _, known := programs[name]; !known && len(os.Args) > 1 {
		os.Args = os.Args[1:]
		name = os.Args[0]
	}
	run, known := programs[name]
	if !known {
		fmt.Fprintf(os.Stderr, "k8s: no program is called %q\n", name)
		os.Exit(2)
	}
	os.Exit(run())
}
