/** docs/errors.md, made from the table of reasons. Pure. */
import { type Reason, reasons } from '#lib/reasons.js';
import { sentence } from '#lib/text.js';

const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('<', '&lt;');

/** The headings, each with the first reason below it, in the order of the table. */
const sections: Readonly<Partial<Record<Reason, string>>> = {
  'lower-missing': 'The paths of a mount',
  'conflicting-options': 'The options together',
  'work-inside-upper': 'The layers together, and what they are on',
  'no-privilege': 'The kernel and the process',
  'not-mounted': 'Unmounting',
  'path-missing': 'Whiteouts and opaque directories',
  unexplained: 'No known cause',
};

const intro = `# Errors

A call that fails for a reason outside of its arguments throws an \`OverlayError\`. It has the shape of Node's own system
errors (\`code\`, \`errno\`, \`syscall\`, \`path\`, \`dest\`). In addition, \`reason\` is a word from the tables below, \`hint\` is
one sentence that says what to do, and \`kernel\` has the messages of the kernel. \`syscall\` is absent if the library refuses
before the kernel does. If a mount has several layers, the message names the layer by number and path.

Wrong types and values and conflicting options are errors of the caller: a \`TypeError\` or \`RangeError\` with one of
Node's codes.

Only after a failure, the library examines the layers, the mount table and the process to find the reason. If a file
system does not answer, a promise waits two seconds and then continues with the facts that it has; a synchronous call
waits as long as it takes. \`overlayfs explain\` examines the same facts without mounting.

\`\`\`js
import { mountOverlay, OverlayError } from 'overlayfs';

try {
  await mountOverlay({ lowerdir: ['/no/layer', '/usr'], rootless: 'auto' });
} catch (error) {
  if (!(error instanceof OverlayError) || error.reason !== 'lower-missing') throw error;
  console.log(error.code, error.path);   // ENOENT /no/layer
}
\`\`\`

\`exclusive\`, the default, refuses an upperdir or workdir that another overlay uses, if this process has mounted that
overlay, on any thread, or the mount table of this namespace has shown it. The directory stays in use until the kernel
reports that the superblock of the overlay is gone: a clone, a bind, an open file, a program or another mount namespace
keeps it after an unmount. Two calls of one process never mount with the same directory, or on the same target, at the
same time; the second one is refused. \`exclusive\` cannot see:

- overlays of other processes that this namespace's table does not show: rootless or detached ones, those in other mount
  namespaces, and those that were unmounted lazily before this process looked;
- overlays that others mount at the very same moment;
- before Linux 6.8, all overlays of other processes.

With \`index: true\` the kernel itself refuses these, and also a lower layer that is
another overlay's upperdir or workdir, or lies in one. Without, the kernel takes such a lower layer, and what the mount
shows when the other overlay changes is undefined.
`;

const firstUse = `
## Errors of files in a mount

The kernel can refuse calls of a program in an overlay that is mounted correctly:

| call | error | cause and remedy |
| --- | --- | --- |
| rename(2) of a directory of a lower layer | \`EXDEV\` | Without \`redirectDir: 'on'\` such a directory cannot be moved: copy it, as mv(1) does, or mount with that option. |
| any, on the name of an upperdir or workdir that lies inside a lower layer | \`ELOOP\` | The kernel shows no layer in itself: use another path to it. |
| open(2) for writing, chmod(2), … of a file of a lower layer | \`ENOSPC\`, \`EDQUOT\` | The whole file is copied to the upper first: make room there, or raise the quota. |
| the same in a user namespace (\`EOVERFLOW\`), or with \`idmap\` (\`EACCES\`) | \`EOVERFLOW\`, \`EACCES\` | The file belongs to someone who has no id there, so a copy could not, whatever its mode: add a range that holds the owner. |
| any that writes | \`EROFS\` | It is a view, without an upper, or was mounted with \`readonly\`. |
| open(2) of a file that was copied up with \`metacopy\`, in a mount without it | \`EPERM\` | Its content is still in the lower layer: mount with \`metacopy: true\`. |
| mknod(2) of a device 0:0 | \`EPERM\` | Whiteouts are made in a layer's own directory: \`whiteout\`. |
| rmdir(2) of a directory that looks empty | \`ENOTEMPTY\` | It holds whiteouts that somebody has put there: remove it in the upperdir. |
| open(2) with \`verity: 'require'\` | \`EIO\` | The file has no digest, or a wrong one. |

\`effective()\` tells which options are in force.
`;

export function errorsPage(): string {
  let page = intro;
  for (const [reason, { when, todo }] of Object.entries(reasons)) {
    const title = sections[reason as Reason];
    if (title !== undefined) page += `\n## ${title}\n\n| reason | when | what to do |\n| --- | --- | --- |\n`;
    page += `| \`${reason}\` | ${cell(sentence(when))} | ${cell(sentence(todo))} |\n`;
  }
  return page + firstUse;
}
