/** Show the API's description with Swagger UI, which is served from here and asks nobody else. */

const beside = location.pathname.endsWith("/") ? "../openapi.json" : "openapi.json";

SwaggerUIBundle({
  url: new URL(beside, document.baseURI).href,
  dom_id: "#api",
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
});

const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();
