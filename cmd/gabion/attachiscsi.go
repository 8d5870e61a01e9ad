package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/internal/fault"
)

// iscsiCommands are what open-iscsi is told to log in to every portal of a target.
// Portals it cannot reach are no reason to fail while one answers.
func iscsiCommands(e *control.Export) [][]string {
	return [][]string{
		{"iscsiadm", "-m", "discovery", "-t", "sendtargets", "-p", e.Portals[0]},
		{"iscsiadm", "-m", "node", "-T", e.Target, "--login"},
	}
}

// attachISCSI logs this machine's initiator in to a volume, at every node that
// serves iSCSI. It prints the commands as it runs them.
func (a *app) attachISCSI(ctx context.Context, volume string) error {
	const op = "attach --iscsi"
	client := control.NewClient(a.stateDir())
	defer client.Close()
	asked, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	e, err := client.Export(asked, volume)
	if err != nil {
		return err
	}
	if len(e.Portals) == 0 {
		return fault.Newf(fault.Unavailable, op, volume, "no node serves iSCSI; give 'gabion node run' an --iscsi address")
	}
	commands := iscsiCommands(e)
	if _, err := exec.LookPath(commands[0][0]); errors.Is(err, exec.ErrNotFound) {
		var lines []string
		for _, c := range commands {
			lines = append(lines, strings.Join(c, " "))
		}
		return fault.Newf(fault.NotFound, op, volume, "iscsiadm is not installed here (package open-iscsi); where it is, run: %s", strings.Join(lines, " && "))
	}
	if e.CHAPUser != "" {
		fmt.Fprintf(a.err, "volume %s wants CHAP as %s: set node.session.auth.* in /etc/iscsi/iscsid.conf first\n", printable(volume), printable(e.CHAPUser))
	}
	for _, c := range commands {
		fmt.Fprintln(a.err, "+", strings.Join(c, " "))
		cmd := exec.CommandContext(ctx, c[0], c[1:]...)
		cmd.Stdout, cmd.Stderr = a.out, a.err
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("attach --iscsi %s: %s: %w", volume, strings.Join(c, " "), err)
		}
	}
	return nil
}
