// kstatus reads a Kubernetes object (JSON) on stdin and prints the verdict of the library by which Helm 4 waits:
// {"status": "Current" | "InProgress" | "Failed" | "Terminating" | …, "message": …}.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func main() {
	object := &unstructured.Unstructured{}
	// Its own decoder: encoding/json makes whole numbers floats, which the library refuses.
	text, err := io.ReadAll(os.Stdin)
	if err == nil {
		err = object.UnmarshalJSON(text)
	}
	var verdict *status.Result
	if err == nil {
		verdict, err = status.Compute(object)
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(map[string]string{
			"status": verdict.Status.String(), "message": verdict.Message,
		})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kstatus:", err)
		os.Exit(1)
	}
}
