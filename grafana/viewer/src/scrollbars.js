// @grafana/ui wants the default export; from CommonJS that is one level too deep for a bundler.
export { Scrollbars as default } from 'react-custom-scrollbars-2/lib/index.js';
