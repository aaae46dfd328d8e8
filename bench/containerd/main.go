// The same pairs by containerd's mount package, as its snapshots are mounted and unmounted.
//
// Obeys the line "sync SETS PAIRS BASE" as bench/peer/main.c does.
package main

import (
	"bufio"
	"fmt"
	"log"
	"os"
	"runtime"
	"sort"
	"syscall"
	"time"

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

func main() {
	runtime.LockOSThread()
	// It does not outlive the process that started it.
	syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var setCount, pairs int
		var base string
		if _, err := fmt.Sscanf(lines.Text(), "sync %d %d %s", &setCount, &pairs, &base); err != nil {
			log.Fatal(err)
		}
		measure(base, setCount, pairs)
	}
}
