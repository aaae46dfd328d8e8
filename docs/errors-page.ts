/** docs/errors.md, made from the table of reasons. Pure. */
import { type Reason, reasons } from '#lib/reasons.js';

const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('<', '&lt;');
const sentence = (text: string): string => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;

/** The headings, each with the first reason below it, in the order of the table. */
const sections: Readonly<Partial<Record<Reason, string>>> = {
  'lower-missing': 'The paths of a mount',
  'conflicting-options': 'The options together',
  'work-inside-upper': 'The layers together, and what they are on',
  'no-privilege': 'The kernel and the process',
  'not-mounted': 'Unmounting',
  'path-missing': 'Whiteouts and opaque directories',
  unexplained: 'What nothing explains',
};

const intro = `# Errors

What fails for a reason that lies outside the call itself fails with an \`OverlayError\`. It has the shape of Node's own
system errors (\`code\`, \`errno\`, \`syscall\`, \`path\`, \`dest\`), and \`reason\`, a word from the tables below; \`hint\`, one
sentence that says what to do; \`kernel\`, the lines that the kernel gave. \`syscall\` is absent where the library refuses
before the kernel does. Where a mount has several layers, the message says which, by number and path.

Types, values and conflicts of options are errors of the caller: a \`TypeError\` or \`RangeError\` with one of Node's codes.

After a failure, and only then, the library looks at the layers, the mount table and the process to find the reason. A
promise waits two seconds for that look when a file system does not answer, and then goes on with what is known; a
synchronous call waits as long as it takes. \`overlayfs explain\` makes the same look without mounting.

\`\`\`js
import { mountOverlay, OverlayError } from 'overlayfs';

try {
  await mountOverlay({ lowerdir: ['/no/layer', '/usr'], rootless: 'auto' });
} catch (error) {
  if (!(error instanceof OverlayError) || error.reason !== 'lower-missing') throw error;
  console.log(error.code, error.path);   // ENOENT /no/layer
}
\`\`\`

\`exclusive\`, the default, refuses an upperdir or workdir while an overlay uses it that this process has mounted, from any
thread and in any way, or that the mount table of this namespace has shown since. The directory stays in use until the
kernel says that the overlay's superblock is gone: a clone, a bind, an open file, a program or another mount namespace
keeps it alive after an unmount. Two calls of one process never mount with the same directory, or on the same target, at
once; the second is refused, promise or not. What it cannot see:

- overlays of other processes that this namespace's table does not show: rootless or detached ones, those in other mount
  namespaces, and those that were unmounted lazily before this process looked;
- overlays of other processes whose upperdir and workdir the table shows by paths that do not lead there: relative ones,
  and ones that have been renamed or are covered since;
- the second of two overlays that other processes have mounted with one directory, once the first has ended;
- overlays that others mount at the very same moment;
- before Linux 6.8, all overlays of other processes.

With \`index: true\` the kernel itself refuses these, and also a lower layer that is
another overlay's upperdir or workdir, or lies in one. Without, the kernel takes such a lower layer, and what the mount
shows when the other overlay changes is undefined.
`;

const firstUse = `
## What files answer later

An overlay that is mounted rightly can still refuse what a program does in it. These errors are the kernel's, and come
from the program's own calls:

| call | answer | why, and what helps |
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
