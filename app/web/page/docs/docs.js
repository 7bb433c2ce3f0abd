/** Show the API's description with Swagger UI, which is served from here and asks nobody else. */

const beside = location.pathname.endsWith("/") ? "../openapi.json" : "openapi.json";

/** A person had rather choose a file: the form comes first here. */
function formsFirst(spec) {
  for (const { post } of Object.values(spec.paths)) {
    const content = post?.requestBody?.content ?? {};
    const { "multipart/form-data": form, ...others } = content;
    if (form) post.requestBody.content = { "multipart/form-data": form, ...others };
  }
  return spec;
}

/** Several files: Swagger UI looks for a field of this name, complains and takes the one of one. */
function binaryAsFile({ getComponent, React }) {
  const field = (props) => React.createElement(getComponent("JsonSchema_string"), props);
  return { components: { JsonSchema_string_binary: field } };
}

const answer = await fetch(new URL(beside, document.baseURI));

SwaggerUIBundle({
  spec: formsFirst(await answer.json()),
  dom_id: "#api",
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
  plugins: [binaryAsFile],
});

const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();
