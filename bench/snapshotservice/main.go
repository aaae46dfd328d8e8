// containerd's overlay snapshotter served by its own service, and a client of such services.
//
// "serve ROOT SOCKET" serves until it is killed. "drive SOCKET" obeys lines: "fill COUNT" makes that many views of a base,
// "cycle COUNT" performs that many cycles of prepare, mounts, commit and remove. It prints the median time of a cycle
// and of each of the four, in ns.
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"sort"
	"sync"
	"syscall"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/contrib/snapshotservice"
	"github.com/containerd/containerd/pkg/dialer"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/overlay"
	"github.com/containerd/containerd/snapshots/proxy"
	"google.golang.org/grpc"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func serve(root, address string) {
	snapshotter, err := overlay.NewSnapshotter(root, overlay.AsynchronousRemove)
	check(err)
	listener, err := net.Listen("unix", address)
	check(err)
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	check(server.Serve(listener))
}

type driver struct {
	snapshotter snapshots.Snapshotter
	cycles      int
}

func (d *driver) base(ctx context.Context) {
	if _, err := d.snapshotter.Stat(ctx, "base"); err == nil {
		return
	}
	_, err := d.snapshotter.Prepare(ctx, "preparing base", "")
	check(err)
	check(d.snapshotter.Commit(ctx, "base", "preparing base"))
}

func (d *driver) fill(ctx context.Context, count int) {
	var group sync.WaitGroup
	const atOnce = 50
	for caller := 0; caller < atOnce; caller++ {
		group.Add(1)
		go func(caller int) {
			defer group.Done()
			for i := caller; i < count; i += atOnce {
				_, err := d.snapshotter.View(ctx, fmt.Sprintf("there %d", i), "base")
				check(err)
			}
		}(caller)
	}
	group.Wait()
	fmt.Println(0)
}

func median(times []time.Duration) int64 {
	sort.Slice(times, func(i, j int) bool { return times[i] < times[j] })
	return times[len(times)/2].Nanoseconds()
}

func (d *driver) cycle(ctx context.Context, count int) {
	times := make([][]time.Duration, 5)
	for i := 0; i < count; i++ {
		key, name := fmt.Sprintf("key %d", d.cycles), fmt.Sprintf("name %d", d.cycles)
		d.cycles++
		verbs := []func() error{
			func() error { _, err := d.snapshotter.Prepare(ctx, key, "base"); return err },
			func() error { _, err := d.snapshotter.Mounts(ctx, key); return err },
			func() error { return d.snapshotter.Commit(ctx, name, key) },
			func() error { return d.snapshotter.Remove(ctx, name) },
		}
		begin := time.Now()
		for v, verb := range verbs {
			start := time.Now()
			check(verb())
			times[v+1] = append(times[v+1], time.Since(start))
		}
		times[0] = append(times[0], time.Since(begin))
	}
	fmt.Println(median(times[0]), median(times[1]), median(times[2]), median(times[3]), median(times[4]))
}

func drive(address string) {
	ctx := context.Background()
	connection, err := grpc.Dial(
		dialer.DialAddress(address),
		grpc.WithInsecure(),
		grpc.WithBlock(),
		grpc.WithContextDialer(dialer.ContextDialer),
	)
	check(err)
	d := &driver{snapshotter: proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), "bench")}
	d.base(ctx)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var verb string
		var count int
		_, err := fmt.Sscanf(lines.Text(), "%s %d", &verb, &count)
		check(err)
		if verb == "fill" {
			d.fill(ctx, count)
		} else {
			d.cycle(ctx, count)
		}
	}
}

func main() {
	// It does not outlive the process that started it.
	syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0)
	if os.Args[1] == "serve" {
		serve(os.Args[2], os.Args[3])
	} else {
		drive(os.Args[2])
	}
}
