// runc-drop-caps runs runc after removing from what it is asked to start whatever needs CAP_SYS_RESOURCE, on machines that
// lack it: Docker's --privileged asks for every capability by name, and runc then fails with "unable to apply caps".
// Where the machine has the capability nothing is changed.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const (
	capability    = "CAP_SYS_RESOURCE"
	capabilityBit = 24 // Source: linux/capability.h
)

func main() {
	args := os.Args[1:]
	if !capabilityIsHeld() {
		if err := dropFromRequest(args); err != nil {
			fmt.Fprintln(os.Stderr, "runc-drop-caps:", err) // runc's own error, if any, says more
		}
	}
	runc, err := findRunc()
	if err == nil {
		err = syscall.Exec(runc, append([]string{"runc"}, args...), os.Environ())
	}
	fmt.Fprintln(os.Stderr, "runc-drop-caps:", err)
	os.Exit(1)
}

func capabilityIsHeld() bool {
	status, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(status), "\n") {
		if value, found := strings.CutPrefix(line, "CapBnd:"); found {
			bits, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			return err != nil || bits&(1<<capabilityBit) != 0
		}
	}
	return true
}

// The daemon's PATH may be a short one, so the usual places come first.
func findRunc() (string, error) {
	for _, candidate := range []string{"/usr/sbin/runc", "/usr/bin/runc"} {
		if _, err := os.Stat(candidate); err == nil {
			return candidate, nil
		}
	}
	return exec.LookPath("runc")
}

// dropFromRequest edits the file in which runc's caller describes the process: the bundle's config.json for create and
// run, the file named by --process for exec.
func dropFromRequest(args []string) error {
	for i, arg := range args {
		switch arg {
		case "create", "run":
			bundle := option(args[i:], "--bundle", "-b")
			return edit(filepath.Join(bundle, "config.json"), func(spec map[string]any) {
				if process, ok := spec["process"].(map[string]any); ok {
					dropFromProcess(process)
				}
			})
		case "exec":
			if file := option(args[i:], "--process", "-p"); file != "" {
				return edit(file, dropFromProcess)
			}
			return nil
		}
	}
	return nil
}

func option(args []string, names ...string) string {
	for i, arg := range args {
		for _, name := range names {
			if arg == name && i+1 < len(args) {
				return args[i+1]
			}
			if value, found := strings.CutPrefix(arg, name+"="); found {
				return value
			}
		}
	}
	return ""
}

func edit(file string, change func(map[string]any)) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	decoder := json.NewDecoder(strings.NewReader(string(content)))
	decoder.UseNumber() // a float64 would spoil large limits
	var document map[string]any
	if err := decoder.Decode(&document); err != nil {
		return err
	}
	change(document)
	if content, err = json.Marshal(document); err != nil {
		return err
	}
	return os.WriteFile(file, content, 0o600)
}

func dropFromProcess(process map[string]any) {
	if sets, ok := process["capabilities"].(map[string]any); ok {
		for name, set := range sets {
			if list, ok := set.([]any); ok {
				sets[name] = without(list, capability)
			}
		}
	}
	raiseOOMScore(process)
	delete(process, "rlimits") // raising a hard limit needs the capability too
}

func without(list []any, unwanted string) []any {
	kept := []any{}
	for _, item := range list {
		if item != unwanted {
			kept = append(kept, item)
		}
	}
	return kept
}

// A score lower than our own needs the capability: ask for our own instead.
func raiseOOMScore(process map[string]any) {
	wanted, ok := process["oomScoreAdj"].(json.Number)
	if !ok {
		return
	}
	score, err := wanted.Int64()
	if err != nil {
		return
	}
	own, _ := os.ReadFile("/proc/self/oom_score_adj")
	if current, err := strconv.ParseInt(strings.TrimSpace(string(own)), 10, 64); err == nil && score < current {
		process["oomScoreAdj"] = current
	}
}
