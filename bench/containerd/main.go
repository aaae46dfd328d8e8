// The same pairs by containerd's mount package, as its snapshots are mounted and unmounted, and layers unpacked by its
// archive package, as a pull does it.
//
// Obeys the line "sync SETS PAIRS BASE" as bench/peer/main.c does, and "apply ARCHIVE DIRECTORY".
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"os"
	"runtime"
	"sort"
	"syscall"
	"time"

	"github.com/containerd/containerd/archive"
	"github.com/containerd/containerd/archive/compression"
	"github.com/containerd/containerd/mount"
)

type set struct {
	mounts []mount.Mount
	target string
}

func newSet(directory string) set {
	options := []string{
		"workdir=" + directory + "/work",
		"upperdir=" + directory + "/upper",
		"lowerdir=" + directory + "/lower",
	}
	return set{
		mounts: []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}},
		target: directory + "/target",
	}
}

func pair(s set) {
	if err := mount.All(s.mounts, s.target); err != nil {
		log.Fatal(err)
	}
	if err := mount.UnmountAll(s.target, 0); err != nil {
		log.Fatal(err)
	}
}

func measure(base string, setCount, pairs int) {
	sets := make([]set, setCount)
	for i := range sets {
		sets[i] = newSet(fmt.Sprintf("%s/%d", base, i))
	}
	times := make([]time.Duration, pairs)
	begin := time.Now()
	for i := range times {
		start := time.Now()
		pair(sets[i%setCount])
		times[i] = time.Since(start)
	}
	total := time.Since(begin)
	sort.Slice(times, func(i, j int) bool { return times[i] < times[j] })
	fmt.Println(((times[(pairs-1)/2] + times[pairs/2]) / 2).Nanoseconds(), total.Nanoseconds())
}

// Hashes the archive, and what it holds when it is uncompressed.
func apply(path, directory string) {
	begin := time.Now()
	file, err := os.Open(path)
	if err != nil {
		log.Fatal(err)
	}
	defer file.Close()
	whole, inside := sha256.New(), sha256.New()
	uncompressed, err := compression.DecompressStream(io.TeeReader(file, whole))
	if err != nil {
		log.Fatal(err)
	}
	reader := io.TeeReader(uncompressed, inside)
	if _, err := archive.Apply(context.Background(), directory, reader); err != nil {
		log.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, reader); err != nil {
		log.Fatal(err)
	}
	fmt.Println(time.Since(begin).Nanoseconds())
}

func main() {
	runtime.LockOSThread()
	// It does not outlive the process that started it.
	syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var setCount, pairs int
		var base, path string
		if _, err := fmt.Sscanf(lines.Text(), "apply %s %s", &path, &base); err == nil {
			apply(path, base)
			continue
		}
		if _, err := fmt.Sscanf(lines.Text(), "sync %d %d %s", &setCount, &pairs, &base); err != nil {
			log.Fatal(err)
		}
		measure(base, setCount, pairs)
	}
}
