package iscsiclient

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/gabion-storage/gabion/target/iscsi/pdu"
)

// Command is a SCSI command under way or over.
type Command struct {
	CDB       []byte
	LUN       uint64
	Out       []byte
	In        []byte // room for data-in
	Length    int    // expected data transfer length; 0: that of Out or In
	NoWrite   bool   // W bit clear in spite of Out
	Immediate bool
	Attr      pdu.Attribute

	ITT      uint32
	Done     bool
	Status   byte
	Response byte
	Sense    []byte
	Residual pdu.Residual
	Got      int // bytes of data-in
	DataSN   uint32
	R2Ts     []pdu.R2T
}

// Key, ASC of the sense data in fixed or descriptor format; zeros without.
func (c *Command) SenseKey() (key byte, asc uint16) {
	s := c.Sense
	switch {
	case len(s) >= 14 && s[0]&0x7e == 0x70:
		return s[2] & 15, uint16(s[12])<<8 | uint16(s[13])
	case len(s) >= 4 && s[0]&0x7e == 0x72:
		return s[1] & 15, uint16(s[2])<<8 | uint16(s[3])
	}
	return 0, 0
}

// NextITT is a tag for a command.
func (c *Client) NextITT() uint32 {
	c.itt++
	return c.itt
}

// Start sends a command with what data may go unasked.
func (c *Client) Start(cmd *Command) error {
	cmd.ITT = c.NextITT()
	if cmd.Length == 0 {
		cmd.Length = max(len(cmd.Out), len(cmd.In))
	}
	p := pdu.SCSICommand{
		Immediate: cmd.Immediate, Final: true, Read: len(cmd.In) > 0, Write: len(cmd.Out) > 0 && !cmd.NoWrite, Attribute: cmd.Attr,
		LUN: cmd.LUN, ITT: cmd.ITT, Length: uint32(cmd.Length), CmdSN: c.CmdSN, ExpStatSN: c.ExpStatSN,
	}
	if p.Attribute == 0 {
		p.Attribute = pdu.Simple
	}
	copy(p.CDB[:], cmd.CDB)
	var ahs []byte
	if len(cmd.CDB) > 16 {
		ahs = (&pdu.AHS{CDB: cmd.CDB[16:]}).Append(nil)
	}
	if !cmd.Immediate {
		c.CmdSN++
	}
	c.Commands[cmd.ITT] = cmd
	var immediate []byte
	first := min(int(c.Params.FirstBurst), len(cmd.Out))
	if p.Write && c.Params.ImmediateData {
		immediate = cmd.Out[:min(first, int(c.Params.SendMax))]
	}
	p.Final = !p.Write || c.Params.InitialR2T || len(immediate) == first
	var h pdu.Header
	p.Put(&h)
	if err := c.Send(&h, ahs, immediate); err != nil {
		return err
	}
	if p.Final {
		return nil
	}
	return c.sendData(cmd, pdu.NoTag, len(immediate), first)
}

// sendData sends [at, end) of a command's data.
func (c *Client) sendData(cmd *Command, ttt uint32, at, end int) error {
	for sn := uint32(0); at < end; sn++ {
		k := min(end-at, int(c.Params.SendMax))
		p := pdu.DataOut{Final: at+k == end, LUN: cmd.LUN, ITT: cmd.ITT, TTT: ttt, ExpStatSN: c.ExpStatSN, DataSN: sn, Offset: uint32(at)}
		var h pdu.Header
		p.Put(&h)
		if err := c.Send(&h, nil, cmd.Out[at:at+k]); err != nil {
			return err
		}
		at += k
	}
	return nil
}

// Next takes PDUs until a command is over, and returns it.
func (c *Client) Next() (*Command, error) {
	for {
		h, data, err := c.Recv()
		if err != nil {
			return nil, err
		}
		cmd, err := c.Take(&h, data)
		if cmd != nil || err != nil {
			return cmd, err
		}
	}
}

// Take acts on one PDU as an initiator does; it returns the command that it ended.
func (c *Client) Take(h *pdu.Header, data []byte) (*Command, error) {
	sn := pdu.SN{StatSN: binary.BigEndian.Uint32(h[24:]), ExpCmdSN: binary.BigEndian.Uint32(h[28:]), MaxCmdSN: binary.BigEndian.Uint32(h[32:])}
	if pdu.Before(sn.MaxCmdSN, c.MaxCmdSN) && c.MaxCmdSN != 0 {
		return nil, fmt.Errorf("%v: MaxCmdSN falls from %d to %d", h.Opcode(), c.MaxCmdSN, sn.MaxCmdSN)
	}
	c.MaxCmdSN, c.ExpCmdSN = sn.MaxCmdSN, sn.ExpCmdSN
	status := func() error {
		if sn.StatSN != c.ExpStatSN {
			return fmt.Errorf("%v: StatSN %d, %d is due", h.Opcode(), sn.StatSN, c.ExpStatSN)
		}
		c.ExpStatSN++
		return nil
	}
	cmd := c.Commands[h.ITT()]
	switch h.Opcode() {
	case pdu.OpSCSIResponse:
		p := pdu.DecodeSCSIResponse(h)
		if cmd == nil {
			return nil, fmt.Errorf("a response to nothing: %+v", p)
		}
		cmd.Done, cmd.Status, cmd.Response, cmd.Residual = true, p.Status, p.Response, p.Residual
		if len(data) >= 2 {
			cmd.Sense = append([]byte(nil), data[2:2+int(binary.BigEndian.Uint16(data))]...)
		}
		if want := cmd.DataSN + uint32(len(cmd.R2Ts)); p.ExpDataSN != want {
			return nil, fmt.Errorf("ExpDataSN %d, %d is right", p.ExpDataSN, want)
		}
		delete(c.Commands, cmd.ITT)
		return cmd, status()
	case pdu.OpDataIn:
		return c.takeData(cmd, h, data, status)
	case pdu.OpR2T:
		p := pdu.DecodeR2T(h)
		if cmd == nil || p.Length == 0 || int(p.Offset)+int(p.Length) > len(cmd.Out) || p.R2TSN != uint32(len(cmd.R2Ts)) ||
			p.Length > c.Params.MaxBurst || sn.StatSN != c.ExpStatSN {
			return nil, fmt.Errorf("an R2T that makes no sense: %+v", p)
		}
		cmd.R2Ts = append(cmd.R2Ts, p)
		return nil, c.sendData(cmd, p.TTT, int(p.Offset), int(p.Offset)+int(p.Length))
	case pdu.OpNopIn:
		if h.ITT() != pdu.NoTag {
			return nil, status()
		}
		q := pdu.NopOut{Immediate: true, ITT: pdu.NoTag, TTT: pdu.DecodeNopIn(h).TTT, CmdSN: c.CmdSN, ExpStatSN: c.ExpStatSN}
		var out pdu.Header
		q.Put(&out)
		return nil, c.Send(&out, nil, nil)
	case pdu.OpAsync:
		c.Events = append(c.Events, pdu.DecodeAsync(h))
		return nil, status()
	case pdu.OpReject:
		c.Rejects = append(c.Rejects, pdu.DecodeReject(h))
		return nil, status()
	}
	return nil, fmt.Errorf("an unexpected %v", h.Opcode())
}

func (c *Client) takeData(cmd *Command, h *pdu.Header, data []byte, status func() error) (*Command, error) {
	p := pdu.DecodeDataIn(h)
	switch {
	case cmd == nil:
		return nil, fmt.Errorf("data for nothing: %+v", p)
	case p.DataSN != cmd.DataSN || int(p.Offset) != cmd.Got || cmd.Got+len(data) > len(cmd.In):
		return nil, fmt.Errorf("data at %d, DataSN %d, of %d bytes; %d and %d are due", p.Offset, p.DataSN, len(data), cmd.Got, cmd.DataSN)
	}
	cmd.Got += copy(cmd.In[cmd.Got:], data)
	cmd.DataSN++
	if !p.HasStatus {
		return nil, nil
	}
	cmd.Done, cmd.Status, cmd.Residual = true, p.Status, p.Residual
	delete(c.Commands, cmd.ITT)
	return cmd, status()
}

// Do carries out one command alone.
func (c *Client) Do(cmd *Command) error {
	if err := c.Start(cmd); err != nil {
		return err
	}
	for !cmd.Done {
		if _, err := c.Next(); err != nil {
			return err
		}
	}
	return nil
}

// Read10 and Write10 are CDBs.
func Read10(lba uint32, blocks int) []byte { return rw10(0x28, lba, blocks, false) }

func rw10(op byte, lba uint32, blocks int, fua bool) []byte {
	b := make([]byte, 10)
	b[0] = op
	if fua {
		b[1] = 8
	}
	binary.BigEndian.PutUint32(b[2:], lba)
	binary.BigEndian.PutUint16(b[7:], uint16(blocks))
	return b
}

// String shows a command in messages.
func (c *Command) String() string {
	key, asc := c.SenseKey()
	return fmt.Sprintf("%x: status 0x%02x sense %x/%04x %s", c.CDB, c.Status, key, asc, strings.TrimSpace(fmt.Sprintf("%+v", c.Residual)))
}
