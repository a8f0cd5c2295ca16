// yaml2json turns the YAML document on stdin into JSON: the cluster's tools are Python without packages, which reads no YAML.
package main

import (
	"fmt"
	"io"
	"os"

	"sigs.k8s.io/yaml"
)

func main() {
	document, err := io.ReadAll(os.Stdin)
	if err == nil {
		document, err = yaml.YAMLToJSON(document)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "yaml2json:", err)
		os.Exit(1)
	}
	os.Stdout.Write(document)
}
