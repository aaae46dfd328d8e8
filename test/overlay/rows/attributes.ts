/** The attributes of the mount, the flags of its superblock, its propagation. */
import { type Row, row } from './row.js';
import { bind, dirs, file, noexec, runs, shared, tmpfs } from './setup.js';

const view = (made: Row): Row => ({ ...made, title: `${made.title}, in a view`, view: true });

const alone = ['nosuid', 'nodev', 'noexec', 'nosymfollow', 'nodiratime'];
const allAlone = Object.fromEntries(alone.map((name) => [name, true]));

/** The mount's and the superblock's own, and what the table shows of both. */
const readonlyRows = [false, true].flatMap((readonly) =>
  [false, true].flatMap((readonlySuperblock): Row[] => {
    const attributes = readonly ? ['ro'] : [];
    const made = row(
      `readonly: ${readonly}, readonlySuperblock: ${readonlySuperblock}`,
      { readonly, readonlySuperblock },
      { attributes, superblock: readonlySuperblock ? 'ro' : 'rw' },
    );
    return [made, { ...view(made), expect: { attributes, superblock: 'ro' } }];
  }),
);

const atimes = ['relatime', 'noatime', 'strictatime'];

export const attributeRows: readonly Row[] = [
  ...alone.flatMap((name) => {
    const made = row(`${name} alone`, { [name]: true }, { attributes: [name] });
    return [made, view(made), row(`${name}: false`, { [name]: false }, {})];
  }),
  row('all attributes at once', allAlone, { attributes: alone }),
  row(
    'all attributes at once, and readonly',
    { ...allAlone, readonly: true, atime: 'noatime' },
    {
      attributes: [...alone, 'ro', 'noatime'],
    },
  ),
  row(
    'all attributes at once, and both read-only',
    { ...allAlone, readonly: true, readonlySuperblock: true, atime: 'strictatime' },
    { attributes: [...alone, 'ro', 'strictatime'], superblock: 'ro' },
  ),
  view(
    row(
      'all attributes at once, and readonly',
      { ...allAlone, readonly: true, atime: 'noatime' },
      {
        attributes: [...alone, 'ro', 'noatime'],
      },
    ),
  ),
  ...readonlyRows,
  ...atimes.flatMap((atime) => {
    const made = row(`atime: ${atime}`, { atime }, { attributes: [atime] });
    const both = row(
      `atime: ${atime}, with nodiratime`,
      { atime, nodiratime: true },
      {
        attributes: [atime, 'nodiratime'],
      },
    );
    const readonly = row(`atime: ${atime}, with readonly`, { atime, readonly: true }, { attributes: [atime, 'ro'] });
    return [made, view(made), both, readonly];
  }),
  ...(
    [
      ['private', 'private'],
      ['shared', 'shared'],
      ['slave', 'private'],
      ['unbindable', 'unbindable'],
    ] as const
  ).flatMap(([propagation, shown]) => {
    const made = row(`propagation: ${propagation}`, { propagation }, { propagation: shown });
    return [
      made,
      view(made),
      row(
        `propagation: ${propagation}, with readonly`,
        { propagation, readonly: true },
        {
          propagation: shown,
          attributes: ['ro'],
        },
      ),
    ];
  }),
  // Below a shared mount it joins the peers there, unless it is told what to be.
  row(
    'no propagation named, below a shared mount',
    { target: 'peer/m' },
    { propagation: 'shared', files: {} },
    tmpfs('peer', 'm'),
    shared('peer'),
  ),
  ...(
    [
      ['private', 'private'],
      ['shared', 'shared'],
      ['slave', 'private'],
      ['unbindable', 'unbindable'],
    ] as const
  ).flatMap(([propagation, alone]) => [
    row(
      `propagation: ${propagation}, below a shared mount`,
      { target: 'peer/m', propagation },
      { propagation: alone, files: {} },
      tmpfs('peer', 'm'),
      shared('peer'),
    ),
    row(
      `propagation: ${propagation}, below a shared mount with a peer`,
      { target: 'peer/m', propagation },
      { propagation: propagation === 'slave' ? 'master' : alone, files: {} },
      tmpfs('peer', 'm'),
      shared('peer'),
      bind('peer', 'peer2'),
    ),
  ]),
  row(
    'attributes with options of the overlay',
    { nosuid: true, atime: 'noatime', index: true, volatile: true, readonly: true, propagation: 'shared' },
    { attributes: ['nosuid', 'noatime', 'ro'], shown: ['index=on', 'volatile'], propagation: 'shared' },
  ),
  {
    ...row(
      'noexec of a layer is not that of the overlay',
      { upperdir: 'no/u', workdir: 'no/w' },
      {},
      dirs('x/u', 'x/w'),
      file('x/u/run', '#!/bin/sh\nexit 0\n'),
      runs('chmod', '755', 'x/u/run'),
      bind('x', 'no'),
      noexec('no'),
    ),
    after: runs('m/run'),
  },
  {
    ...row(
      'noexec of the target is not that of the overlay',
      { target: 'm' },
      {},
      file('u/run', '#!/bin/sh\nexit 0\n'),
      runs('chmod', '755', 'u/run'),
      tmpfs('m'),
      noexec('m'),
    ),
    options: { stack: true },
    after: runs('m/run'),
  },
];
