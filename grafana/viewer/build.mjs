// Bundles the page: `node build.mjs <folder>`, with the modules beside this file.
import { cpSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const [, , outdir = here('dist')] = process.argv;

await build({
  entryPoints: { app: here('src/main.jsx') },
  outdir,
  bundle: true,
  minify: true,
  format: 'esm',
  splitting: true,
  jsx: 'automatic',
  conditions: ['module', 'browser'],
  alias: { 'react-router-dom-v5-compat': 'react-router-dom' },
  plugins: [
    {
      name: 'scrollbars',
      setup: ({ onResolve }) =>
        onResolve({ filter: /^react-custom-scrollbars-2$/ }, () => ({ path: here('src/scrollbars.js') })),
    },
  ],
  loader: { '.ttf': 'empty', '.svg': 'dataurl' },
  define: { 'process.env.NODE_ENV': '"production"', global: 'window' },
  logLevel: 'error',
});
cpSync(here('src/index.html'), `${outdir}/index.html`);

// What @grafana/ui asks for by URL.
const modules = (path) => here(`node_modules/${path}`);
cpSync(modules('@grafana/ui/dist/public/img'), `${outdir}/public/build/img`, { recursive: true });
for (const [name, weight] of [['Regular', 400], ['Medium', 500]]) {
  cpSync(
    modules(`@fontsource/inter/files/inter-latin-${weight}-normal.woff2`),
    `${outdir}/public/fonts/inter/Inter-${name}.woff2`,
  );
}
