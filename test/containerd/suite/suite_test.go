// containerd's own tests of snapshotters, for its overlay snapshotter and for a server that it asks through its proxy.
//
// OVERLAYFS_SERVER is the start of the command that serves a root: --root and --address follow.
package suite

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/pkg/dialer"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/overlay"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

func ofContainerd(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	snapshotter, err := overlay.NewSnapshotter(root)
	if err != nil {
		return nil, nil, err
	}
	return snapshotter, snapshotter.Close, nil
}

func served(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	address := filepath.Join(filepath.Dir(root), "socket")
	command := strings.Fields(os.Getenv("OVERLAYFS_SERVER"))
	server := exec.Command(command[0], append(command[1:], "--root", root, "--address", address)...)
	server.Stderr = os.Stderr
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := server.Start(); err != nil {
		return nil, nil, err
	}
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- server.Wait()
		cancel() // a server that could not start is not waited for
	}()
	// As containerd does it.
	connection, err := grpc.DialContext(
		wait,
		dialer.DialAddress(address),
		grpc.WithInsecure(),
		grpc.WithBlock(),
		grpc.WithContextDialer(dialer.ContextDialer),
	)
	if err != nil {
		return nil, nil, err
	}
	stop := func() error {
		connection.Close()
		if err := server.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		return <-ended
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), "overlayfs-node"), stop, nil
}

func TestOfContainerd(t *testing.T) {
	testsuite.SnapshotterSuite(t, "overlayfs", ofContainerd)
}

func TestServed(t *testing.T) {
	testsuite.SnapshotterSuite(t, "overlayfs", served)
}
